//! What the operator sets. One struct ([`Layer`]) is the flags, the environment and the file, so
//! that a setting cannot exist in one and not in the other; laid over each other (flag, then
//! environment, then file) and over the defaults they become [`Settings`].

mod effective;
mod file;
mod judge;
mod layer;
mod problem;
pub mod values;

pub use effective::Settings;
pub use file::load;
pub use judge::judge;
pub use layer::Layer;
pub use problem::Problem;
pub use values::{BackendsName, EngineName, LogFormat};

/// The JSON Schema of the settings file, as `deploy/weir.schema.json` publishes it.
pub fn schema() -> String {
    let mut schema = schemars::schema_for!(Layer);
    schema.insert(
        "$id".into(),
        "https://weir.dev/schema/weir.schema.json".into(),
    );
    schema.insert("title".into(), "weir.yaml".into());
    let description =
        "Settings of a Weir appliance. Traffic is configured by Kubernetes objects alone.";
    schema.insert("description".into(), description.into());
    // A map of strings cannot fail to serialize.
    let text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text + "\n"
}

/// The layers as one text: each setting, and who made it. `is_flag` says of a setting, by its name
/// with _ between words, that its flag was given; else what is above the file is the environment.
pub fn show(flags: &Layer, file: &Layer, is_flag: impl Fn(&str) -> bool) -> String {
    let settings = serde_json::to_value(flags).unwrap_or_default();
    let below = serde_json::to_value(file).unwrap_or_default();
    let (Some(settings), Some(below)) = (settings.as_object(), below.as_object()) else {
        return String::new();
    };
    let mut text = String::new();
    for (name, below) in below {
        let over = settings.get(name).unwrap_or(&serde_json::Value::Null);
        let line = match (is_unset(over), is_unset(below)) {
            (false, _) if is_flag(&judge::split(name, '_')) => format!("{name}: {over} # flag\n"),
            (false, _) => format!("{name}: {over} # environment\n"),
            (true, false) => format!("{name}: {below} # file\n"),
            (true, true) => format!("# {name}: {} (default)\n", default_of(name)),
        };
        text.push_str(&line);
    }
    text
}

/// What holds where nobody set `name`.
fn default_of(name: &str) -> String {
    let settings = Settings::new(Layer::default(), Layer::default());
    let span = |time| values::Span(time).to_string();
    match name {
        "admin" => "unix:/run/weir/admin.sock, or below XDG_RUNTIME_DIR".to_owned(),
        "stateDir" => "/var/lib/weir, or below XDG_STATE_HOME".to_owned(),
        "workers" => "one per CPU".to_owned(),
        "inCluster" => "true in a pod without manifests and kubeconfig".to_owned(),
        "namespaces" => "all".to_owned(),
        "engine" => "auto".to_owned(),
        "pin" => settings.pin.to_string(),
        "class" => settings.class,
        "defaultProvider" => "true for a directory, false for a cluster".to_owned(),
        "sourceAddresses" => "the kernel's choice".to_owned(),
        "vipInterface" => "the one whose subnet holds the VIP, else lo".to_owned(),
        "hashKey" => "random, kept in the state directory".to_owned(),
        "confirmDeletions" => settings.confirm_deletions.to_string(),
        "drainTimeout" => span(settings.drain_timeout),
        "connectTimeout" => span(settings.connect_timeout),
        "connectBudget" => span(settings.connect_budget),
        "idleTimeout" => span(settings.idle_timeout),
        "halfCloseTimeout" => span(settings.half_close_timeout),
        "peerTimeout" => span(settings.peer_timeout),
        "memoryStop" => settings.memory_stop.to_string(),
        "memoryShed" => settings.memory_shed.to_string(),
        "flowOneWayTimeout" => span(settings.flow_one_way_timeout),
        "flowTwoWayTimeout" => span(settings.flow_two_way_timeout),
        "logFormat" => "auto".to_owned(),
        "log" => settings.log,
        _ => "none".to_owned(),
    }
}

fn is_unset(value: &serde_json::Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests;
