//! What the operator sets. One struct ([`Layer`]) is the flags, the environment and the file, so
//! that a setting cannot exist in one and not in the other; laid over each other (flag, then
//! environment, then file) and over the defaults they become [`Settings`].

mod effective;
mod file;
mod judge;
mod layer;
mod problem;
mod values;

pub use effective::Settings;
pub use file::load;
pub use judge::judge;
pub use layer::Layer;
pub use problem::Problem;
pub use values::{EngineName, LogFormat};

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

/// The layers as one text: each setting that somebody made, and who.
pub fn show(flags: &Layer, file: &Layer) -> String {
    let settings = serde_json::to_value(flags).unwrap_or_default();
    let below = serde_json::to_value(file).unwrap_or_default();
    let (Some(settings), Some(below)) = (settings.as_object(), below.as_object()) else {
        return String::new();
    };
    let mut text = String::new();
    for (name, below) in below {
        let over = settings.get(name).unwrap_or(&serde_json::Value::Null);
        let (value, origin) = match (is_unset(over), is_unset(below)) {
            (false, _) => (over, "flag or environment"),
            (true, false) => (below, "file"),
            (true, true) => (below, "default"),
        };
        if is_unset(value) {
            text.push_str(&format!("# {name}: ({origin})\n"));
        } else {
            text.push_str(&format!("{name}: {value} # {origin}\n"));
        }
    }
    text
}

fn is_unset(value: &serde_json::Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests;
