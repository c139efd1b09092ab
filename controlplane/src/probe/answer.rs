//! The head of an HTTP response, as far as a probe reads it. PURE. Whoever answers is believed in
//! nothing but this.

use super::Answer;

/// Longer heads are no answer of a service proxy.
pub(super) const MAX_HEAD: usize = 4_096;

/// kube-proxy: how many endpoints of the Service this node has (KEP-3836's health server).
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// What the response of a service proxy says. `head` is what was read until now; `None`: more has to
/// be read.
pub(super) fn read(head: &[u8], ended: bool) -> Option<Answer> {
    let end = head.windows(4).position(|four| four == b"\r\n\r\n");
    let head = match end {
        Some(end) => &head[..end],
        None if ended || head.len() >= MAX_HEAD => return Some(Answer::Odd),
        None => return None,
    };
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let mut words = status.split(' ');
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    Some(match words.next() {
        Some("200") if is_http => Answer::Good(lines.find_map(weight)),
        Some("503") if is_http => Answer::Draining,
        _ => Answer::Odd,
    })
}

/// As [`read`], of an endpoint: its status is all that counts, and its head may be as long as it likes.
pub(super) fn read_status(head: &[u8], ended: bool) -> Option<Answer> {
    let line = match head.windows(2).position(|two| two == b"\r\n") {
        Some(end) => &head[..end],
        None if ended || head.len() >= MAX_HEAD => return Some(Answer::Odd),
        None => return None,
    };
    let text = String::from_utf8_lossy(line);
    let mut words = text.split(' ');
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    let digits = words.next().filter(|word| word.len() == 3 && is_http);
    let status = digits.and_then(|word| word.parse().ok());
    Some(match status {
        Some(200..=399) => Answer::Good(None),
        Some(status @ 100..=999) => Answer::Status(status),
        _ => Answer::Odd,
    })
}

/// The weight that a header line gives. 0 would be "nothing for me", which 503 is there to say.
fn weight(line: &str) -> Option<u16> {
    let (name, value) = line.split_once(':')?;
    if !name.eq_ignore_ascii_case(WEIGHT) {
        return None;
    }
    let value: u32 = value.trim().parse().ok()?;
    Some(u16::try_from(value).unwrap_or(u16::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_of_service_proxies_and_of_others() {
        for (head, answer) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Answer::Good(None)),
            ("HTTP/1.0 200 OK\r\nA: b\r\n\r\nbody", Answer::Good(None)),
            (
                "HTTP/1.1 200 OK\r\nX-Load-Balancing-Endpoint-Weight: 3\r\n\r\n",
                Answer::Good(Some(3)),
            ),
            (
                "HTTP/1.1 200 OK\r\nX-Load-Balancing-Endpoint-Weight: 0\r\n\r\n",
                Answer::Good(Some(1)),
            ),
            (
                "HTTP/1.1 200 OK\r\nx-load-balancing-endpoint-weight:70000\r\n\r\n",
                Answer::Good(Some(u16::MAX)),
            ),
            (
                "HTTP/1.1 200 OK\r\nX-Load-Balancing-Endpoint-Weight: -1\r\n\r\n",
                Answer::Good(None),
            ),
            (
                "HTTP/1.1 503 Service Unavailable\r\nX-Load-Balancing-Endpoint-Weight: 0\r\n\r\n",
                Answer::Draining,
            ),
            ("HTTP/1.1 404 Not Found\r\n\r\n", Answer::Odd),
            ("HTTP/1.1 2000 OK\r\n\r\n", Answer::Odd),
            ("HTTP/2 200\r\n\r\n", Answer::Odd),
            ("SSH-2.0-x\r\n\r\n", Answer::Odd),
            ("\r\n\r\n", Answer::Odd),
        ] {
            assert_eq!(read(head.as_bytes(), false), Some(answer), "{head:?}");
        }
    }

    #[test]
    fn the_status_of_an_endpoint_is_all_that_counts() {
        for (head, answer) in [
            ("HTTP/1.1 200 OK\r\n", Answer::Good(None)),
            ("HTTP/1.0 204\r\n", Answer::Good(None)),
            ("HTTP/1.1 302 Found\r\nLocation: /x\r\n", Answer::Good(None)),
            ("HTTP/1.1 399 \r\n", Answer::Good(None)),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", Answer::Status(400)),
            ("HTTP/1.1 503 No\r\n\r\n", Answer::Status(503)),
            ("HTTP/1.1 199 ?\r\n", Answer::Status(199)),
            ("HTTP/1.1 999 ?\r\n", Answer::Status(999)),
            ("HTTP/1.1 2000 OK\r\n", Answer::Odd),
            ("HTTP/1.1 +20 OK\r\n", Answer::Odd),
            ("HTTP/1.1 099 OK\r\n", Answer::Odd),
            ("HTTP/2 200\r\n", Answer::Odd),
            ("SSH-2.0-x\r\n", Answer::Odd),
            ("\r\n", Answer::Odd),
        ] {
            assert_eq!(
                read_status(head.as_bytes(), false),
                Some(answer),
                "{head:?}"
            );
        }
        assert_eq!(read_status(b"HTTP/1.1 200 OK", false), None);
        assert_eq!(read_status(b"HTTP/1.1 200 OK", true), Some(Answer::Odd));
        assert_eq!(read_status(&[b'x'; MAX_HEAD], false), Some(Answer::Odd));
    }

    #[test]
    fn half_a_head_is_waited_for_and_one_without_end_is_not() {
        assert_eq!(read(b"HTTP/1.1 200 OK\r\n", false), None);
        assert_eq!(read(b"", false), None);
        assert_eq!(read(b"HTTP/1.1 200 OK\r\n", true), Some(Answer::Odd));
        assert_eq!(read(&[b'x'; MAX_HEAD], false), Some(Answer::Odd));
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer_in_the_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&bytes, true).is_some());
            prop_assert!(read_status(&bytes, true).is_some());
        }
    }
}
