//! A list that grows without moving what it holds.
//!
//! PURE. A `Vec` that doubles copies all it holds, some milliseconds at 100,000 connections in
//! which a worker does nothing else, and leaves up to half of its memory unused. This one takes
//! a chunk of 256 entries at a time.

use std::ops::{Index, IndexMut};

/// Of an index, the bits that count inside a chunk.
const BITS: u32 = 8;
const SIZE: usize = 1 << BITS;

/// A list at whose end entries are added. None ever moves or goes before the list does.
#[derive(Debug)]
pub(crate) struct Chunks<T> {
    /// All but the last are full. A chunk's place costs as much as one index of a `Vec`, and these
    /// are moved when their list grows: 24 bytes for each 256 entries.
    chunks: Vec<Vec<T>>,
}

impl<T> Chunks<T> {
    pub(crate) const fn new() -> Chunks<T> {
        Chunks { chunks: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        match self.chunks.split_last() {
            Some((last, full)) => full.len() * SIZE + last.len(),
            None => 0,
        }
    }

    pub(crate) fn push(&mut self, entry: T) {
        match self.chunks.last_mut() {
            Some(last) if last.len() < SIZE => last.push(entry),
            _ => {
                let mut chunk = Vec::with_capacity(SIZE);
                chunk.push(entry);
                self.chunks.push(chunk);
            }
        }
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index >> BITS)?.get(index % SIZE)
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.chunks.get_mut(index >> BITS)?.get_mut(index % SIZE)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }
}

impl<T> Index<usize> for Chunks<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.chunks[index >> BITS][index % SIZE]
    }
}

impl<T> IndexMut<usize> for Chunks<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.chunks[index >> BITS][index % SIZE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_a_vec_that_moves_nothing() {
        let mut chunks = Chunks::new();
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
