//! A persistent vector: 8-way, copied along one path at a change, the rest shared.
//!
//! A clone is one `Arc`. A `set` on a vector that shares with a clone copies at most 11 nodes of 8
//! entries (8^11 > 2^32), and in place what nobody else holds. Comparing two versions costs what
//! differs between them: parts that are the same by pointer are not entered.
//!
//! Narrow, because to copy a node is to count a reference to each of its entries, and to drop it to
//! take that back: atomics in as many other places of memory. With 10,000 entries a path has 5 x 8
//! of them, and would have 3 x 32 at 32 to a node (`rebuild` in benches/README.md).

use std::array;
use std::sync::Arc;

const BITS: u32 = 3;
const WIDTH: usize = 1 << BITS;

/// A sparse vector from `u32` to `T` whose versions share what they have in common.
#[derive(Clone, Debug)]
pub struct Radix<T> {
    root: Option<Arc<Node<T>>>,
    /// Branch levels above the leaves; 0: the root is a leaf.
    height: u32,
}

#[derive(Clone, Debug)]
enum Node<T> {
    Branch([Option<Arc<Node<T>>>; WIDTH]),
    Leaf([Option<T>; WIDTH]),
}

impl<T> Default for Radix<T> {
    fn default() -> Radix<T> {
        Radix {
            root: None,
            height: 0,
        }
    }
}

impl<T> Radix<T> {
    /// A vector of nothing.
    pub fn new() -> Radix<T> {
        Radix::default()
    }

    /// What stands at `index`.
    pub fn get(&self, index: u32) -> Option<&T> {
        if !reaches(self.height, index) {
            return None;
        }
        let mut node = self.root.as_deref()?;
        let mut level = self.height;
        loop {
            match node {
                Node::Branch(children) => {
                    node = children[digit(index, level)].as_deref()?;
                    level -= 1;
                }
                Node::Leaf(values) => return values[digit(index, 0)].as_ref(),
            }
        }
    }

    /// Every value with its index, in ascending order.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter {
            stack: self.root.as_deref().map(|n| (n, 0)).into_iter().collect(),
            prefix: 0,
        }
    }

    /// Calls `changed(index, before, after)` for every index at which `old` and `new` differ, in
    /// ascending order. Costs what is not shared between the two, plus what differs.
    pub fn diff<'a>(
        old: &'a Radix<T>,
        new: &'a Radix<T>,
        mut changed: impl FnMut(u32, Option<&'a T>, Option<&'a T>),
    ) where
        T: PartialEq,
    {
        let level = old.height.max(new.height);
        diff_nodes(old.top(), new.top(), level, 0, &mut changed);
    }

    fn top(&self) -> Part<'_, T> {
        Part {
            node: self.root.as_ref(),
            height: self.height,
        }
    }
}

impl<T: Clone> Radix<T> {
    /// Puts `value` at `index`, or takes away what stands there. In place where no clone holds the
    /// same part.
    pub fn set(&mut self, index: u32, value: Option<T>) {
        if !reaches(self.height, index) {
            if value.is_none() {
                return;
            }
            self.grow(index);
        }
        let mut slot = &mut self.root;
        for level in (1..=self.height).rev() {
            let node = slot.get_or_insert_with(|| Arc::new(Node::branch()));
            slot = match Arc::make_mut(node) {
                Node::Branch(children) => &mut children[digit(index, level)],
                Node::Leaf(_) => unreachable!("leaves stand at level 0 alone"),
            };
        }
        let node = slot.get_or_insert_with(|| Arc::new(Node::Leaf(array::from_fn(|_| None))));
        match Arc::make_mut(node) {
            Node::Leaf(values) => values[digit(index, 0)] = value,
            Node::Branch(_) => unreachable!("branches stand above level 0 alone"),
        }
    }

    /// Raises the root until it reaches `index`.
    fn grow(&mut self, index: u32) {
        while !reaches(self.height, index) {
            self.height += 1;
            if let Some(root) = self.root.take() {
                let mut children = array::from_fn(|_| None);
                children[0] = Some(root);
                self.root = Some(Arc::new(Node::Branch(children)));
            }
        }
    }
}

impl<T> Node<T> {
    fn branch() -> Node<T> {
        Node::Branch(array::from_fn(|_| None))
    }
}

impl<T: PartialEq> PartialEq for Radix<T> {
    fn eq(&self, other: &Radix<T>) -> bool {
        let mut equal = true;
        // The walk goes on past the first difference; versions of one vector differ in little.
        Radix::diff(self, other, |_, _, _| equal = false);
        equal
    }
}

impl<T: Eq> Eq for Radix<T> {}

/// Can a root of this height hold `index`?
fn reaches(height: u32, index: u32) -> bool {
    let bits = BITS * (height + 1);
    bits >= u32::BITS || index >> bits == 0
}

/// Which child of a node at `level` leads to `index`.
fn digit(index: u32, level: u32) -> usize {
    (index >> (BITS * level)) as usize % WIDTH
}

/// A subtree, possibly lower than the level at which it is looked at: then all of it hangs under
/// child 0 of the branches that were never made.
struct Part<'a, T> {
    node: Option<&'a Arc<Node<T>>>,
    height: u32,
}

impl<T> Clone for Part<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Part<'_, T> {}

impl<'a, T> Part<'a, T> {
    fn child(self, level: u32, i: usize) -> Part<'a, T> {
        let node = if self.height < level {
            return Part {
                node: self.node.filter(|_| i == 0),
                height: self.height,
            };
        } else {
            match self.node.map(|n| &**n) {
                Some(Node::Branch(children)) => children[i].as_ref(),
                Some(Node::Leaf(_)) | None => None,
            }
        };
        Part {
            node,
            height: level - 1,
        }
    }

    fn value(self, i: usize) -> Option<&'a T> {
        match self.node.map(|n| &**n) {
            Some(Node::Leaf(values)) => values[i].as_ref(),
            Some(Node::Branch(_)) | None => None,
        }
    }
}

fn diff_nodes<'a, T: PartialEq>(
    old: Part<'a, T>,
    new: Part<'a, T>,
    level: u32,
    prefix: u32,
    changed: &mut impl FnMut(u32, Option<&'a T>, Option<&'a T>),
) {
    let same = match (old.node, new.node) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    };
    if same {
        return;
    }
    for i in 0..WIDTH {
        // The eleventh level has room for 33 bits; what would overflow was never set.
        let index = prefix.wrapping_shl(BITS) | i as u32;
        if level > 0 {
            let (old, new) = (old.child(level, i), new.child(level, i));
            diff_nodes(old, new, level - 1, index, changed);
        } else if old.value(i) != new.value(i) {
            changed(index, old.value(i), new.value(i));
        }
    }
}

/// Iterator over a [`Radix`].
#[derive(Debug)]
pub struct Iter<'a, T> {
    /// The path to the next value: each node with the child to enter next.
    stack: Vec<(&'a Node<T>, usize)>,
    /// Index bits of that path, without the last node's own.
    prefix: u32,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = (u32, &'a T);

    fn next(&mut self) -> Option<(u32, &'a T)> {
        loop {
            let (node, next) = self.stack.last_mut()?;
            let i = *next;
            if i == WIDTH {
                self.stack.pop();
                self.prefix >>= BITS;
                continue;
            }
            *next += 1;
            match *node {
                Node::Leaf(values) => {
                    if let Some(value) = &values[i] {
                        return Some((self.prefix << BITS | i as u32, value));
                    }
                }
                Node::Branch(children) => {
                    if let Some(child) = &children[i] {
                        self.stack.push((child, 0));
                        self.prefix = self.prefix << BITS | i as u32;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn index() -> impl Strategy<Value = u32> {
        prop_oneof![
            4 => 0u32..70,
            2 => 0u32..5_000,
            1 => any::<u32>(),
            1 => Just(u32::MAX),
        ]
    }

    fn steps() -> impl Strategy<Value = Vec<(u32, Option<u8>)>> {
        proptest::collection::vec((index(), any::<Option<u8>>()), 0..60)
    }

    fn apply(radix: &mut Radix<u8>, model: &mut BTreeMap<u32, u8>, steps: &[(u32, Option<u8>)]) {
        for &(index, value) in steps {
            radix.set(index, value);
            match value {
                Some(value) => model.insert(index, value),
                None => model.remove(&index),
            };
        }
    }

    fn contents(radix: &Radix<u8>) -> Vec<(u32, u8)> {
        radix.iter().map(|(i, &v)| (i, v)).collect()
    }

    proptest! {
        #[test]
        fn is_a_map_whose_versions_do_not_disturb_each_other(first in steps(), then in steps()) {
            let (mut radix, mut model) = (Radix::new(), BTreeMap::new());
            apply(&mut radix, &mut model, &first);
            let (old, old_model) = (radix.clone(), model.clone());
            apply(&mut radix, &mut model, &then);

            let pairs = |m: &BTreeMap<u32, u8>| -> Vec<_> { m.iter().map(|(&i, &v)| (i, v)).collect() };
            prop_assert_eq!(contents(&radix), pairs(&model));
            prop_assert_eq!(contents(&old), pairs(&old_model));
            for i in first.iter().chain(&then).map(|s| s.0) {
                prop_assert_eq!(radix.get(i), model.get(&i));
                prop_assert_eq!(radix.get(i ^ 1), model.get(&(i ^ 1)));
            }

            let mut found = Vec::new();
            Radix::diff(&old, &radix, |i, a, b| found.push((i, a.copied(), b.copied())));
            let mut indices: Vec<u32> = old_model.keys().chain(model.keys()).copied().collect();
            indices.sort_unstable();
            indices.dedup();
            let expected: Vec<_> = indices
                .into_iter()
                .map(|i| (i, old_model.get(&i).copied(), model.get(&i).copied()))
                .filter(|(_, a, b)| a != b)
                .collect();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(old == radix, expected.is_empty());
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "some minutes, and no unsafe code")]
    fn a_diff_enters_only_what_is_not_shared() {
        use std::cell::Cell;
        thread_local!(static COMPARED: Cell<u32> = const { Cell::new(0) });
        #[derive(Clone, Debug)]
        struct Counted(u32);
        impl PartialEq for Counted {
            fn eq(&self, other: &Counted) -> bool {
                COMPARED.set(COMPARED.get() + 1);
                self.0 == other.0
            }
        }
        let mut radix = Radix::new();
        for i in 0..100_000 {
            radix.set(i, Some(Counted(i)));
        }
        let old = radix.clone();
        radix.set(54_321, Some(Counted(0)));
        let mut changes = Vec::new();
        Radix::diff(&old, &radix, |i, _, _| changes.push(i));
        assert_eq!(changes, [54_321]);
        assert_eq!(COMPARED.get(), WIDTH as u32);
    }

    #[test]
    fn a_part_held_by_nobody_else_is_changed_in_place() {
        let mut radix = Radix::new();
        radix.set(1, Some(1u8));
        let before = radix.root.as_ref().map(Arc::as_ptr);
        radix.set(2, Some(2));
        assert_eq!(before, radix.root.as_ref().map(Arc::as_ptr));
        let held = radix.clone();
        radix.set(3, Some(3));
        assert_ne!(before, radix.root.as_ref().map(Arc::as_ptr));
        assert_eq!(before, held.root.as_ref().map(Arc::as_ptr));
    }
}
