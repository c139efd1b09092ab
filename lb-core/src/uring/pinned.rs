//! Memory of ours that the kernel has a pointer to, or that points into itself.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// Owns a value on the heap as a `Box` does, but says to nobody that it alone knows where it is: a `Box` that is moved
/// invalidates every pointer to what it holds (as Miri tells), while this one may be moved under them.
pub(super) struct Pinned<T: ?Sized> {
    at: NonNull<T>,
    owns: PhantomData<T>,
}

impl<T: ?Sized> Pinned<T> {
    pub(super) fn new(value: Box<T>) -> Pinned<T> {
        Pinned {
            at: NonNull::from(Box::leak(value)),
            owns: PhantomData,
        }
    }

    /// Where it is until this is dropped. To be written through only by who knows that nobody reads.
    pub(super) fn as_ptr(&self) -> *mut T {
        self.at.as_ptr()
    }
}

impl<T: ?Sized> Drop for Pinned<T> {
    fn drop(&mut self) {
        // SAFETY: it was leaked from a box in `new`, and nobody else takes it back: this type is not `Clone`, and a value
        // is dropped once.
        drop(unsafe { Box::from_raw(self.at.as_ptr()) });
    }
}

impl<T: ?Sized> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Pointer::fmt(&self.at, f)
    }
}
