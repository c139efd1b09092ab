//! Any bytes at all as a manifest file: only in test and fuzzing builds.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use lb_core::table::HashKey;

use super::file::File;
use super::parse::Reader;
use crate::compile::{Compiler, Defaults};
use crate::nodes::NodeSet;
use crate::object::{Object, SourceId};
use crate::probe::Verdicts;
use crate::translate::{Rules, View, translate};

/// Plays `bytes`: the first says whether the file is YAML or JSON; what stands before a zero byte
/// is its first version, the rest the next. Both go all the way to a table.
///
/// # Panics
/// If a place that does not exist is named, if reading the same again means something else, or if
/// any part panics.
pub fn play(bytes: &[u8]) {
    let Some((kind, content)) = bytes.split_first() else {
        return;
    };
    let name = ["web.yaml", "web.json"][usize::from(*kind) % 2];
    let mut reader = Reader::new(SourceId(0), Arc::default());
    let path = Arc::new(PathBuf::from(name));
    let mut before = None;
    for version in content.splitn(2, |byte| *byte == 0) {
        let file = File::read(&path, version, &mut reader, before.as_ref());
        let lines = version
            .split(|byte| *byte == b'\n' || *byte == b'\r')
            .count();
        for problem in &file.problems {
            let place = &problem.location;
            assert!(place.line as usize <= lines + 1, "{problem}");
            assert!(place.line > 0 && place.column > 0, "{problem}");
        }
        let again = File::read(&path, version, &mut reader, Some(&file));
        assert!(again == file, "the same means something else");
        compile(&file);
        before = Some(file);
    }
}

fn compile(file: &File) {
    let slices: Vec<_> = file
        .objects
        .values()
        .filter_map(|object| match object {
            Object::EndpointSlice(slice) => Some(Arc::clone(slice)),
            _ => None,
        })
        .collect();
    let nodes = file.objects.values().filter_map(|object| match object {
        Object::Node(node) => Some(node),
        _ => None,
    });
    // Services choose what is dialled by annotation.
    let rules = Rules::default();
    let view = View {
        nodes: &NodeSet::new(true, nodes, &rules),
        verdicts: &Verdicts::new(),
        health: &Verdicts::new(),
    };
    let mut compiler = Compiler::new(HashKey([1; 16]), Defaults::default());
    let mut vip = Ipv4Addr::new(198, 18, 0, 0);
    for object in file.objects.values() {
        let balancer = match object {
            Object::Service(service) => translate(service, &slices, view, &rules).load_balancer,
            Object::LoadBalancer(balancer) => Some(Arc::clone(balancer)),
            Object::EndpointSlice(_) | Object::Node(_) => None,
        };
        if let Some(balancer) = balancer {
            vip = Ipv4Addr::from(u32::from(vip) + 1);
            let addresses = [IpAddr::V4(vip)];
            compiler.update(&balancer.key, Some((&*balancer, &addresses)));
        }
    }
    compiler.freeze();
}

#[cfg(test)]
mod tests {
    use std::fs;

    #[test]
    fn what_the_fuzzer_found_is_played_again() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/manifest");
        let mut played = 0;
        for file in fs::read_dir(seeds).expect("the fuzzer's seeds are there") {
            let path = file.expect("a file of it").path();
            eprintln!("{}", path.display());
            super::play(&fs::read(path).expect("it can be read"));
            played += 1;
        }
        assert!(played > 0);
    }
}
