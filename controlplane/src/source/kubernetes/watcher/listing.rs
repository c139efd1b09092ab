//! Lists a scope whole: as a stream of events where the API server offers that (KEP-3157), which
//! spares it the building of pages, and page by page where not.

use super::super::connection::Lease;
use super::super::failure::Failure;
use super::super::items::{Items, ListError, ListMeta};
use super::super::lines::Lines;
use super::super::reading::{self, Read, WatchLine};
use super::super::request::{self, Patience};
use super::super::scope::resource;
use super::super::store::{List, MAX_OBJECTS};
use super::{Closed, Proof, Report, Stop, Watcher, encoded};
use crate::object::Key;

/// Objects of a page of a list.
const PAGE: usize = 500;
/// Pages of a list: more never end.
const MAX_PAGES: usize = 10_000;
/// Bytes of a list, as they are sent. 100,000 endpoints take 60 MB.
const MAX_LIST: usize = 512 << 20;

/// Whether the next list is asked for as a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Streaming {
    /// It is.
    #[default]
    Wanted,
    /// The last stream failed: once by pages.
    Failed,
    /// The API server does not offer it.
    NotOffered,
}

impl Streaming {
    /// A stream was refused, or ended otherwise than by its end. Whether the list may be asked for by
    /// pages at once: somebody answered, and it was no trouble that passes.
    fn failed(&mut self, failure: &Failure) -> bool {
        *self = match failure {
            // 400 and 422: no such option. 403: another verb. 1.26 and older watch instead.
            Failure::Refused { .. } | Failure::Forbidden { .. } | Failure::Garbage { .. } => {
                Streaming::NotOffered
            }
            _ => Streaming::Failed,
        };
        *self == Streaming::NotOffered
    }

    /// A list by pages was complete.
    fn paged(&mut self) {
        if *self == Streaming::Failed {
            *self = Streaming::Wanted;
        }
    }
}

impl Watcher {
    /// Lists everything, and hands it on when it is complete.
    pub(super) async fn list(&mut self, lease: &Lease) -> Result<(), Stop> {
        if self.streaming == Streaming::Wanted {
            match self.by_stream(lease).await {
                Err(Stop::Failed(failure)) if self.streaming.failed(&failure) => {
                    tracing::debug!(scope = %self.scope, "no list as a stream: {failure}");
                }
                done => return done,
            }
        }
        self.by_pages(lease).await
    }

    /// A watch that begins with all there is, and says where that ends. What it would say after that
    /// is left to the watch proper, which has an end that is soon.
    async fn by_stream(&mut self, lease: &Lease) -> Result<(), Stop> {
        let mut list = self.begun();
        let seconds = self.times.page.as_secs().max(1);
        let path = format!(
            "{}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds={seconds}",
            self.scope.path(),
        );
        let asked = self.asked("watch");
        let mut answer = request::get(lease, &path, &asked, self.patience()).await?;
        let mut lines = Lines::default();
        let mut room = MAX_LIST;
        // Deleted while the stream went on, to be said after the list.
        let mut gone: Vec<Key> = Vec::new();
        let mut read = Vec::new();
        while let Some(bytes) = answer.next().await? {
            self.watches.contact(&self.scope);
            room = left(room, bytes.len())?;
            let Watcher { reader, scope, .. } = self;
            lines.push(&bytes, |line| read.push(reading::line(reader, scope, line)));
            for line in read.drain(..) {
                match line {
                    WatchLine::Applied(object, _) => keep(&mut list, object),
                    WatchLine::Deleted(Some(key), _) if gone.len() < MAX_OBJECTS => gone.push(key),
                    WatchLine::Deleted(..) => return Err(Failure::Gone.into()),
                    WatchLine::Bookmark(Some(version), true) => {
                        self.complete(list, version).await?;
                        for key in gone {
                            self.report(Report::Deleted(key)).await?;
                        }
                        return Ok(());
                    }
                    WatchLine::Bookmark(..) => {}
                    WatchLine::Error(code, message) => {
                        return Err(Failure::of_status(code, &message, &asked).into());
                    }
                    WatchLine::Garbage(problem) => return Err(Failure::Garbage { problem }.into()),
                }
            }
            tokio::task::yield_now().await;
        }
        let problem = "a list as a stream ended before its end".to_owned();
        Err(Failure::Garbage { problem }.into())
    }

    async fn by_pages(&mut self, lease: &Lease) -> Result<(), Stop> {
        let mut list = self.begun();
        let mut next: Option<String> = None;
        let mut room = MAX_LIST;
        for _ in 0..MAX_PAGES {
            let page = self
                .page(lease, next.as_deref(), &mut list, &mut room)
                .await?;
            if page.next.is_some() {
                next = page.next;
                continue;
            }
            self.streaming.paged();
            return Ok(self.complete(list, page.version).await?);
        }
        let problem = format!("a list has more than {MAX_PAGES} pages");
        Err(Failure::Garbage { problem }.into())
    }

    async fn page(
        &mut self,
        lease: &Lease,
        next: Option<&str>,
        list: &mut List,
        room: &mut usize,
    ) -> Result<ListMeta, Stop> {
        let mut path = format!("{}?limit={PAGE}", self.scope.path());
        if let Some(next) = next {
            path.push_str(&format!("&continue={}", encoded(next)));
        }
        let asked = self.asked("list");
        let mut answer = request::get(lease, &path, &asked, self.patience()).await?;
        let mut items = Items::default();
        let Watcher {
            reader,
            scope,
            watches,
            ..
        } = self;
        while let Some(bytes) = answer.next().await? {
            watches.contact(scope);
            *room = left(*room, bytes.len())?;
            let read = items.push(&bytes, |piece| {
                keep(list, reading::item(reader, scope, piece))
            });
            read.map_err(|error| unlisted(&error))?;
            // Objects take time to read, and other watches are on this thread, too.
            tokio::task::yield_now().await;
        }
        let kind = resource(scope.kind).map_or("", |resource| resource.kind);
        Ok(items.finish(kind).map_err(|error| unlisted(&error))?)
    }

    /// A list that begins now, and so follows what was ordered.
    fn begun(&mut self) -> List {
        List {
            order: *self.orders.borrow_and_update(),
            ..List::default()
        }
    }

    fn patience(&self) -> Patience {
        Patience {
            begin: self.times.begin,
            idle: self.times.idle(),
            whole: self.times.page,
        }
    }

    /// Hands on a list; watched from `version`.
    async fn complete(&mut self, list: List, version: String) -> Result<(), Closed> {
        self.version = Some(version);
        self.watches.listed(&self.scope);
        for refused in &list.refused {
            self.watches.refused(&self.scope, refused.refusal);
        }
        self.report(Report::Listed(list)).await?;
        self.works(Proof::Listed).await
    }
}

/// What is past any measure is not even kept to be refused by name.
fn keep(list: &mut List, read: Read) {
    match read {
        Ok(object) if list.objects.len() < MAX_OBJECTS * 2 => list.objects.push(object),
        Err(refused) if list.refused.len() < MAX_OBJECTS => list.refused.push(*refused),
        _ => {}
    }
}

/// The room of a list after so many bytes more.
fn left(room: usize, bytes: usize) -> Result<usize, Failure> {
    room.checked_sub(bytes).ok_or_else(|| Failure::Garbage {
        problem: format!("a list is larger than {MAX_LIST} bytes"),
    })
}

fn unlisted(error: &ListError) -> Failure {
    Failure::Garbage {
        problem: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_does_not_offer_streams_is_not_asked_again_and_who_failed_is_after_pages() {
        let refused = |status| Failure::Refused {
            status,
            message: String::new(),
        };
        let forbidden = Failure::Forbidden {
            verb: "watch",
            resource: "services",
            namespace: String::new(),
            message: String::new(),
        };
        let garbage = Failure::Garbage {
            problem: String::new(),
        };
        for (failure, now, then) in [
            (refused(422), Streaming::NotOffered, Streaming::NotOffered),
            (refused(400), Streaming::NotOffered, Streaming::NotOffered),
            (forbidden, Streaming::NotOffered, Streaming::NotOffered),
            (garbage, Streaming::NotOffered, Streaming::NotOffered),
            (Failure::Gone, Streaming::Failed, Streaming::Wanted),
            (Failure::WentBack, Streaming::Failed, Streaming::Wanted),
            (Failure::Unauthorized, Streaming::Failed, Streaming::Wanted),
            (
                Failure::Silent {
                    after: Duration::ZERO,
                },
                Streaming::Failed,
                Streaming::Wanted,
            ),
        ] {
            let mut streaming = Streaming::Wanted;
            assert_eq!(streaming.failed(&failure), now == Streaming::NotOffered);
            assert_eq!(streaming, now, "{failure}");
            streaming.paged();
            assert_eq!(streaming, then, "{failure}");
        }
    }
}
