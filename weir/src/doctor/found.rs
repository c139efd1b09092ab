//! What the probe found, as checks.

use lb_core::plane::{Engine, Finding, Probe, choose};

use super::check::{Check, Verdict};

/// What this release has no use for, or only on some machines, or where other checks say so.
const SPARE: [&str; 3] = ["CAP_NET_RAW", "CAP_SYS_RESOURCE", "CAP_BPF"];

pub fn checks(probe: &Probe) -> Vec<Check> {
    let mut checks = vec![engine(probe)];
    let all = probe.io_uring.iter().chain(&probe.optional);
    checks.extend(all.map(finding));
    checks
}

/// What `--engine auto` would run.
fn engine(probe: &Probe) -> Check {
    match choose(Engine::Auto, probe) {
        Ok(chosen) => Check::ok("engine", chosen.driver.label()).noting(chosen.why),
        Err(error) => Check::ok("engine", "none").but(Verdict::Fail, error.to_string(), ""),
    }
}

fn finding(found: &Finding) -> Check {
    let Some(lack) = &found.lack else {
        return Check::ok(found.name, "yes");
    };
    let no = Check::ok(found.name, "no");
    match SPARE.contains(&found.name) {
        true => no.noting(&*lack.what),
        false => no.but(Verdict::Warn, &*lack.what, lack.fix.replace('`', "")),
    }
}
