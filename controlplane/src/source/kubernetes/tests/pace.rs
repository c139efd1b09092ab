//! An API server that answers late.

use super::*;

/// It breaks nothing, and is found after three answers; and is well again after ten in time.
#[test]
fn k3_a_server_that_answers_late_is_found_and_found_well_again() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    let late = Fault::Late(LATE + Duration::from_millis(50));
    for plural in ["services", "endpointslices"] {
        server.always("watch", plural, late.clone());
    }
    let times = Times {
        begin: Duration::from_secs(10),
        watch: Duration::from_secs(2),
        // A watch that begins late may last as long as any.
        slack: Duration::from_secs(10),
        ..times()
    };
    let directory = tempfile::tempdir().expect("temp");
    let mut harness = Harness::with(&server, times, &[], "", directory);
    let pace = harness.settings.connection.pace().clone();
    harness.complete();
    // Lists are in time, and the watches with them are not.
    harness.until("found slow", |_| pace.seen().is_slow);
    let seen = pace.seen();
    assert!(seen.late >= 3 && seen.slowest > LATE, "{seen:?}");
    assert_eq!(harness.problems(), [] as [String; 0], "nothing failed");
    server.put(service("shop", "api", 80));
    harness.until("served all the same", |now| now.names().len() == 2);

    server.mend();
    let rescan = Arc::clone(&harness.rescan);
    harness.until("found well", |_| {
        // Lists are answers like any other, and do not wait for the end of a watch.
        rescan.notify_one();
        !pace.seen().is_slow
    });
    let seen = pace.seen();
    assert!(
        seen.slowest <= LATE && seen.count >= seen.late + 10,
        "{seen:?}"
    );
}
