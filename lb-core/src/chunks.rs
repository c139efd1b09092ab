//! A list that grows without moving what it holds.
//!
//! PURE. A `Vec` that doubles copies all it holds, some milliseconds at 100,000 connections in
//! which a worker does nothing else, and leaves up to half of its memory unused. This one takes
//! a chunk of 2^`BITS` entries at a time.

use std::ops::{Index, IndexMut};

/// A list at whose end entries are added. None ever moves or goes before the list does. Of an index, `BITS` bits count
/// inside a chunk.
#[derive(Debug)]
pub(crate) struct Chunks<T, const BITS: u32 = 8> {
    /// All but the last are full. A chunk's place costs as much as one index of a `Vec`, and these
    /// are moved when their list grows: 24 bytes for each 2^`BITS` entries.
    chunks: Vec<Vec<T>>,
}

impl<T, const BITS: u32> Chunks<T, BITS> {
    const SIZE: usize = 1 << BITS;

    pub(crate) const fn new() -> Self {
        Chunks { chunks: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        match self.chunks.split_last() {
            Some((last, full)) => full.len() * Self::SIZE + last.len(),
            None => 0,
        }
    }

    pub(crate) fn push(&mut self, entry: T) {
        match self.chunks.last_mut() {
            Some(last) if last.len() < Self::SIZE => last.push(entry),
            _ => {
                let mut chunk = Vec::with_capacity(Self::SIZE);
                chunk.push(entry);
                self.chunks.push(chunk);
            }
        }
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index >> BITS)?.get(index % Self::SIZE)
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.chunks
            .get_mut(index >> BITS)?
            .get_mut(index % Self::SIZE)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }
}

impl<T, const BITS: u32> Index<usize> for Chunks<T, BITS> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.chunks[index >> BITS][index % Self::SIZE]
    }
}

impl<T, const BITS: u32> IndexMut<usize> for Chunks<T, BITS> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.chunks[index >> BITS][index % Self::SIZE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 256;

    #[test]
    fn as_a_vec_that_moves_nothing() {
        let mut chunks: Chunks<usize> = Chunks::new();
        assert_eq!((chunks.len(), chunks.get(0)), (0, None));
        let mut places = Vec::new();
        for n in 0..3 * SIZE + 7 {
            chunks.push(n);
            assert_eq!(chunks.len(), n + 1);
            places.push(&raw const chunks[n]);
        }
        for (n, place) in places.into_iter().enumerate() {
            assert_eq!(chunks.get(n), Some(&n));
            assert!(std::ptr::eq(place, &chunks[n]), "{n} was moved");
        }
        *chunks.get_mut(SIZE).expect("in range") += 1;
        chunks[SIZE] += 1;
        assert_eq!(chunks[SIZE], SIZE + 2);
        for beyond in [3 * SIZE + 7, 4 * SIZE, u32::MAX as usize] {
            assert_eq!(chunks.get(beyond), None);
            assert_eq!(chunks.get_mut(beyond), None);
        }
        assert_eq!(chunks.iter().count(), chunks.len());
        // No more memory than entries, but for one chunk.
        assert!(chunks.chunks.iter().all(|chunk| chunk.capacity() == SIZE));
    }
}
