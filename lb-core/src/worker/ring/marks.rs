//! What is true of a lane, a bit each: an idle connection has two lanes, and there are thousands.

/// Names a bit of [`Marks`], and the two ways to it.
macro_rules! marks {
    ($($(#[$doc:meta])* $name:ident $set:ident = $bit:literal,)+) => {
        impl Marks {
            $(
                $(#[$doc])*
                pub(super) const fn $name(self) -> bool {
                    self.0 & (1 << $bit) != 0
                }

                pub(super) const fn $set(&mut self, is: bool) {
                    self.0 = self.0 & !(1 << $bit) | (is as u16) << $bit;
                }
            )+
        }
    };
}

/// Every one is false at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks(u16);

marks! {
    /// epoll watches the socket for errors.
    watched set_watched = 0,
    /// It has reported one that nobody has taken yet.
    error set_error = 1,
    /// The receive ended for want of a buffer, and is begun again when there are some.
    starved set_starved = 2,
    /// The machine waits for what comes from this socket.
    wanted set_wanted = 3,
    /// A send of what came from this socket is under way.
    sending set_sending = 4,
    /// The socket is polled for something to splice.
    polls_in set_polls_in = 5,
    /// The other socket is polled for room.
    polls_out set_polls_out = 6,
    /// There is room, as the last poll says.
    writable set_writable = 7,
    /// A send of what waits in a pipe is outstanding.
    draining set_draining = 8,
    /// The last splice of what came from this socket moved less than there was: if an error ended
    /// it, the kernel has told nobody.
    cut_short set_cut_short = 9,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mark_is_one_of_its_own() {
        type Way = (fn(Marks) -> bool, fn(&mut Marks, bool));
        let all: [Way; 10] = [
            (Marks::watched, Marks::set_watched),
            (Marks::error, Marks::set_error),
            (Marks::starved, Marks::set_starved),
            (Marks::wanted, Marks::set_wanted),
            (Marks::sending, Marks::set_sending),
            (Marks::polls_in, Marks::set_polls_in),
            (Marks::polls_out, Marks::set_polls_out),
            (Marks::writable, Marks::set_writable),
            (Marks::draining, Marks::set_draining),
            (Marks::cut_short, Marks::set_cut_short),
        ];
        for (n, (_, set)) in all.iter().enumerate() {
            let mut marks = Marks::default();
            set(&mut marks, true);
            for (m, (is, _)) in all.iter().enumerate() {
                assert_eq!(is(marks), n == m, "{n} {m}");
            }
            set(&mut marks, false);
            assert_eq!(marks, Marks::default());
        }
    }
}
