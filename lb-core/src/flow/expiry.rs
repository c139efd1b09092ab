//! Alarms: one per flow, which rings at the deadline that the flow had when it was set. A flow in
//! use moves its deadline on every datagram and its alarm only when that rings, so that expiry
//! costs a datagram nothing.
//!
//! A binary heap that knows where each flow's alarm is: a flow that ends takes its alarm with it,
//! in logarithmic time, and there is never anything to sweep.

use crate::time::Time;

/// Where alarms note their place: in the flows that they are of.
pub(super) trait Places {
    /// The alarm of flow `index` is at `place`.
    fn set_place(&mut self, index: u32, place: u32);
    /// Where it is.
    fn place(&self, index: u32) -> u32;
}

/// In the order of their times; of two at one time, that of the lower slot comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Alarm {
    at: Time,
    index: u32,
}

#[derive(Debug, Default)]
pub(super) struct Deadlines(Vec<Alarm>);

impl Deadlines {
    /// Sets the alarm of a flow that has none.
    pub(super) fn arm(&mut self, places: &mut impl Places, at: Time, index: u32) {
        self.0.push(Alarm { at, index });
        self.rise(places, self.0.len() - 1);
    }

    /// Moves a flow's alarm.
    pub(super) fn rearm(&mut self, places: &mut impl Places, at: Time, index: u32) {
        let place = places.place(index) as usize;
        let earlier = at < self.0[place].at;
        self.0[place].at = at;
        match earlier {
            true => self.rise(places, place),
            false => self.sink(places, place),
        }
    }

    /// Takes a flow's alarm back.
    pub(super) fn disarm(&mut self, places: &mut impl Places, index: u32) {
        let place = places.place(index) as usize;
        self.0.swap_remove(place);
        if place < self.0.len() {
            // What was the last may belong on either side of its new place.
            self.sink(places, place);
            self.rise(places, place);
        }
    }

    /// The first alarm and its flow.
    pub(super) fn first(&self) -> Option<(Time, u32)> {
        self.0.first().map(|alarm| (alarm.at, alarm.index))
    }

    /// Moves an alarm towards the top until none above it is later.
    fn rise(&mut self, places: &mut impl Places, mut place: usize) {
        let alarm = self.0[place];
        while place > 0 {
            let above = (place - 1) / 2;
            if self.0[above] < alarm {
                break;
            }
            self.put(places, place, self.0[above]);
            place = above;
        }
        self.put(places, place, alarm);
    }

    /// Moves an alarm downwards until none below it is earlier.
    fn sink(&mut self, places: &mut impl Places, mut place: usize) {
        let alarm = self.0[place];
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            let below = match (self.0.get(left), self.0.get(right)) {
                (Some(l), Some(r)) if r < l => right,
                (Some(_), _) => left,
                (None, _) => break,
            };
            if alarm < self.0[below] {
                break;
            }
            self.put(places, place, self.0[below]);
            place = below;
        }
        self.put(places, place, alarm);
    }

    fn put(&mut self, places: &mut impl Places, place: usize, alarm: Alarm) {
        self.0[place] = alarm;
        places.set_place(alarm.index, place as u32);
    }

    /// The alarm at the place that the flow notes.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of(&self, places: &impl Places, index: u32) -> (Time, u32) {
        let alarm = self.0[places.place(index) as usize];
        (alarm.at, alarm.index)
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Places for Vec<u32> {
        fn set_place(&mut self, index: u32, place: u32) {
            self[index as usize] = place;
        }

        fn place(&self, index: u32) -> u32 {
            self[index as usize]
        }
    }

    proptest! {
        /// Against a sorted set: the first is the first after every step.
        #[test]
        fn the_first_alarm_is_the_earliest(
            steps in prop::collection::vec((0..40u32, 0..50u64, any::<bool>()), 1..300)
        ) {
            let (mut deadlines, mut places) = (Deadlines::default(), vec![u32::MAX; 40]);
            let mut model = std::collections::BTreeMap::new();
            for (index, at, ends) in steps {
                let at = Time::from_micros(at);
                if ends && model.remove(&index).is_some() {
                    deadlines.disarm(&mut places, index);
                } else if model.insert(index, at).is_some() {
                    deadlines.rearm(&mut places, at, index);
                } else {
                    deadlines.arm(&mut places, at, index);
                }
                let first = model.iter().map(|(index, at)| (*at, *index)).min();
                prop_assert_eq!(deadlines.first(), first);
                prop_assert_eq!(deadlines.len(), model.len());
            }
        }
    }
}
