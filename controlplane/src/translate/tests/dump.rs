use std::path::PathBuf;

use super::*;
use crate::object::Object;
use crate::source::file::File;
use crate::source::parse::Reader;

const DUMP: &str = include_str!("../../../testdata/cluster-dump.yaml");

/// What every Service of an untouched dump becomes: its reasons, or ports with backends.
#[test]
fn a_normal_cluster_is_served_as_its_owner_expects() {
    let mut reader = Reader::new(SourceId(0), Arc::default());
    let path = Arc::new(PathBuf::from("dump.yaml"));
    let file = File::read(&path, DUMP.as_bytes(), &mut reader, None);
    let mut services = Vec::new();
    let mut slices = Vec::new();
    for object in file.objects.into_values() {
        match object {
            Object::Service(service) => services.push(service),
            Object::EndpointSlice(slice) => slices.push(slice),
            Object::Node(_) | Object::LoadBalancer(_) => {}
        }
    }
    let mut said = Vec::new();
    for service in services {
        let translation = run_with(
            &service,
            slices.iter().map(|slice| (**slice).clone()).collect(),
            &Rules::default(),
        );
        let mut line = format!("{}: {}", service.meta.key, codes(&translation).join(","));
        for port in translation
            .load_balancer
            .iter()
            .flat_map(|made| &made.ports)
        {
            let (v4, v6) = (port.v4.len(), port.v6.len());
            line += &format!(" {}/{:?}={v4}+{v6}", port.port, port.protocol);
        }
        said.push(line);
    }
    assert_eq!(
        said,
        [
            "default/dns:  53/Tcp=2+0 53/Udp=2+0",
            "default/kubernetes: NotALoadBalancer",
            "default/postgres: NotALoadBalancer",
            "default/web:  80/Tcp=3+0 443/Tcp=3+0",
            "kube-system/kube-dns: NotALoadBalancer",
            "media/iperf:  5201/Tcp=2+2",
            "shop/api: ForeignClass",
            "shop/cart: NotALoadBalancer",
            "shop/checkout: ClientAddressNotKept 443/Tcp=2+0",
            "shop/legacy: NotALoadBalancer",
            "shop/payments: NotALoadBalancer"
        ]
    );
}
