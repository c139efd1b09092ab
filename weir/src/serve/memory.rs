//! What is said of memory: a line when it becomes short and when that is over, the check, the
//! gauges. What is done about it is the data plane's.

use admin_api::view::Check;
use lb_core::plane::Handle;
use lb_core::plane::memory::{Kind, Level, Memory, Stock};
use metrics::{Unit, describe_gauge, gauge};

const WAY_OUT: &str = "raise MemoryMax of the unit (or the container's limit, or net.ipv4.tcp_mem), lower --idle-timeout, or serve from more machines";

/// Writes to the log from now on.
pub fn watch(plane: &Handle) {
    plane.on_memory(Box::new(tell));
}

fn tell(memory: &Memory) {
    match memory.level {
        Level::Ample => tracing::info!("memory is ample again: {}", text(memory)),
        Level::Scarce => tracing::warn!("{}", what_is_done(memory)),
        Level::Critical => tracing::error!("{}", what_is_done(memory)),
    }
}

fn what_is_done(memory: &Memory) -> String {
    let (level, text) = (memory.level.label(), text(memory));
    let done = match memory.level {
        Level::Ample => return format!("{level}: {text}"),
        Level::Scarce => "new connections wait and no UDP flow is opened",
        Level::Critical => {
            "new connections wait, no UDP flow is opened, and connections that have been idle longest are closed"
        }
    };
    format!("memory is {level}: {text}; {done}: {WAY_OUT}")
}

/// All that is known, in MiB.
fn text(memory: &Memory) -> String {
    if memory.stocks.is_empty() {
        return "nothing is known of it".to_owned();
    }
    let one = |stock: &Stock| {
        let Stock { kind, used, limit } = stock;
        let what = match kind {
            Kind::Group => "the memory cgroup",
            Kind::Machine => "the machine",
            Kind::Tcp => "TCP's buffers (tcp_mem)",
        };
        format!("{} of {} MiB of {what}", used >> 20, limit >> 20)
    };
    let all: Vec<_> = memory.stocks.iter().map(one).collect();
    format!("{} are in use", all.join(", "))
}

/// How it stands.
pub fn check(memory: &Memory) -> Check {
    match memory.level {
        Level::Ample => Check::good("memory", text(memory)),
        Level::Scarce | Level::Critical => Check::warning("memory", what_is_done(memory)),
    }
}

/// Says what each gauge is.
pub fn describe() {
    let level = "0: ample; 1: new connections wait; 2: idle ones are closed, too.";
    describe_gauge!("weir_memory_level", Unit::Count, level);
    let used = "Memory in use that cannot be had back for the asking, in bytes.";
    describe_gauge!("weir_memory_used_bytes", Unit::Bytes, used);
    let limit = "Where the kernel refuses more memory, or kills, in bytes.";
    describe_gauge!("weir_memory_limit_bytes", Unit::Bytes, limit);
}

/// Sets all of them; what is not known is left out.
pub fn set(memory: &Memory) {
    gauge!("weir_memory_level").set(f64::from(memory.level as u8));
    for Stock { kind, used, limit } in &memory.stocks {
        // Exact up to 2^53 bytes.
        gauge!("weir_memory_used_bytes", "of" => kind.label()).set(*used as f64);
        gauge!("weir_memory_limit_bytes", "of" => kind.label()).set(*limit as f64);
    }
}

#[cfg(test)]
mod tests {
    use admin_api::metrics::Registry;
    use admin_api::view;

    use super::*;

    fn memory(level: Level) -> Memory {
        let kind = Kind::Group;
        let (used, limit) = (47 << 20, 48 << 20);
        Memory {
            level,
            stocks: vec![Stock { kind, used, limit }],
        }
    }

    #[test]
    fn what_is_short_is_said_with_what_to_do() {
        let check = check(&memory(Level::Ample));
        assert_eq!(check.level, view::Level::Good);
        assert_eq!(
            check.message,
            "47 of 48 MiB of the memory cgroup are in use"
        );
        for (level, word) in [(Level::Scarce, "wait"), (Level::Critical, "are closed")] {
            let check = self::check(&memory(level));
            assert_eq!(check.level, view::Level::Warning);
            for part in [word, level.label(), "47 of 48 MiB", "MemoryMax"] {
                assert!(check.message.contains(part), "{part}: {}", check.message);
            }
        }
        let nothing = self::check(&Memory::default());
        assert_eq!(nothing.message, "nothing is known of it");
    }

    #[test]
    fn what_is_set_is_described() {
        let registry = Registry::start(&[]).expect("registry");
        registry.record(|| {
            describe();
            set(&memory(Level::Critical));
        });
        let text = registry.render();
        for line in [
            "weir_memory_level 2",
            "weir_memory_used_bytes{of=\"cgroup\"} 49283072",
            "weir_memory_limit_bytes{of=\"cgroup\"} 50331648",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        let lines = |prefix: &str| text.lines().filter(|l| l.starts_with(prefix)).count();
        assert_eq!(lines("# HELP "), lines("# TYPE "));
    }
}
