//! `weir check PATH...`: what is wrong in manifests and settings files, with file, line and
//! column, and what would become of every Service. Opens no socket, asks no server, needs no root:
//! it reads as the directory source reads, and translates as the control task translates.

mod places;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use controlplane::cluster::Cluster;
use controlplane::nodes::NodeSet;
use controlplane::object::{Key, Kind, SourceId};
use controlplane::probe::Verdicts;
use controlplane::source::file::{File, name_of};
use controlplane::source::parse::Reader;
use controlplane::source::scan::{KINDS, Scan, diff};
use controlplane::source::{Level, Problem, directory};
use controlplane::translate::{Backends, Rules, View, translate};

use crate::cli::CheckArgs;
use crate::exit::{self, Usage};
use crate::settings::{self, BackendsName, Layer, Settings};
use places::Places;
use report::Report;

/// The source that the paths together play.
const SOURCE: SourceId = SourceId(0);

pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let report = check(&args.paths)?;
    print!("{report}");
    Ok(match report.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(exit::NEGATIVE),
    })
}

fn check(paths: &[PathBuf]) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let mut reader = Reader::new(SOURCE, Arc::default());
    let mut all = Scan {
        listed: true,
        ..Scan::default()
    };
    let mut layer = Layer::default();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|error| {
            Usage(format!(
                "{}: {error}; name files or directories that exist",
                path.display()
            ))
        })?;
        if metadata.is_dir() {
            let scan = directory::read(path, &mut reader, &Scan::default());
            all.files.extend(scan.files);
            all.problems.extend(scan.problems);
        } else if is_settings(path) {
            match settings::load(Some(path)) {
                Ok(found) => {
                    for problem in settings::judge(&Layer::default(), &found, Some(path)) {
                        report.settings(&problem);
                    }
                    layer = found;
                }
                Err(problem) => report.settings(&problem),
            }
        } else {
            let name = Arc::new(path.clone());
            let file = match fs::read(path) {
                Ok(content) => File::read(&name, &content, &mut reader, None),
                Err(error) => File::unreadable(&name, &format!("cannot be read: {error}"), None),
            };
            all.files.insert(name, file);
        }
    }
    all.all_problems()
        .iter()
        .for_each(|problem| report.problem(problem));
    let rules = rules(&Settings::new(Layer::default(), layer));
    translate_all(&all, &rules, &mut report);
    Ok(report)
}

/// The rules by which `serve` with these settings would translate.
pub fn rules(settings: &Settings) -> Rules {
    Rules {
        class: settings.class.as_str().into(),
        default_provider: settings.default_provider,
        zone: settings.zone.as_deref().map(Arc::from),
        node_port_addresses: settings
            .node_port_addresses
            .iter()
            .map(|a| a.to_canonical())
            .collect(),
        allow_endpoints: settings.allow_endpoints.iter().map(|cidr| cidr.0).collect(),
        pools: settings
            .pools
            .iter()
            .map(|pool| (pool.range.first(), pool.range.last()))
            .collect(),
        backends: match settings.backends {
            BackendsName::Pods => Backends::Pods,
            BackendsName::Nodes => Backends::Nodes,
            BackendsName::Auto => Backends::Auto,
        },
        node_selector: settings
            .node_selector
            .clone()
            .map(|selector| selector.0)
            .unwrap_or_default(),
        own_addresses: Vec::new(),
    }
}

fn translate_all(all: &Scan, rules: &Rules, report: &mut Report) {
    let mut cluster = Cluster::new(KINDS.map(|kind| (SOURCE, kind)));
    for event in diff(&Scan::default(), all) {
        cluster.apply(SOURCE, event);
    }
    let nodes = NodeSet::new(cluster.knows_nodes(SOURCE), cluster.nodes(), rules);
    let view = View {
        nodes: &nodes,
        verdicts: &Verdicts::new(),
        health: &Verdicts::new(),
    };
    let mut translated = BTreeMap::new();
    for service in cluster.services() {
        let key = &service.meta.key;
        let slices: Vec<_> = cluster.slices_of(key).cloned().collect();
        let translation = translate(service, &slices, view, rules);
        translated.insert(key.clone(), (translation, service.meta.location.as_ref()));
    }
    let malformed = malformed(all);
    let mut places = Places::default();
    let keys: BTreeSet<&Key> = translated.keys().chain(malformed.keys()).collect();
    for key in keys {
        match (translated.get(key), malformed.get(key)) {
            (Some((translation, at)), _) => {
                report.service(key, translation, |annotation| places.of(*at, annotation));
            }
            (None, problems) => report.malformed(key, problems.map_or(&[], Vec::as_slice)),
        }
    }
}

/// The Services that did not parse, each with what is wrong: nobody would serve them.
fn malformed(all: &Scan) -> BTreeMap<Key, Vec<Problem>> {
    let good = all.objects();
    let mut malformed: BTreeMap<Key, Vec<Problem>> = BTreeMap::new();
    for problem in all.all_problems() {
        if let Some(key) = &problem.object
            && key.kind == Kind::Service
            && problem.level == Level::Error
            && !good.contains_key(&name_of(key))
        {
            malformed.entry(key.clone()).or_default().push(problem);
        }
    }
    malformed
}

/// Settings have neither `kind` nor `apiVersion`, which every object has. A file that does not
/// parse is known by its name.
fn is_settings(path: &Path) -> bool {
    let named = path.file_stem().is_some_and(|stem| stem == "weir");
    let Ok(text) = fs::read_to_string(path) else {
        return named;
    };
    match serde_saphyr::from_str::<serde_json::Value>(&text) {
        Ok(serde_json::Value::Object(map)) => {
            !map.contains_key("kind") && !map.contains_key("apiVersion")
        }
        Ok(_) | Err(_) => named,
    }
}

#[cfg(test)]
mod tests;
