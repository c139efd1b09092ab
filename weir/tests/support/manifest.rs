//! Services and EndpointSlices as text, the way a person would write them.

use std::fmt::Write;

/// A Service under construction, with its slices.
#[derive(Clone)]
pub struct Service {
    pub name: String,
    pub namespace: String,
    pub spec: String,
    pub annotations: Vec<(String, String)>,
    pub created: Option<String>,
    pub ports: Vec<(String, &'static str, u16)>,
    pub kind: &'static str,
    pub slices: Vec<Slice>,
}

/// An EndpointSlice under construction.
#[derive(Clone, Default)]
pub struct Slice {
    pub family: &'static str,
    pub ports: Vec<(String, &'static str, u16)>,
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Clone)]
pub struct Endpoint {
    pub address: String,
    pub conditions: String,
}

/// A LoadBalancer Service of namespace `default` without ports.
pub fn service(name: &str) -> Service {
    Service {
        name: name.into(),
        namespace: "default".into(),
        spec: String::new(),
        annotations: Vec::new(),
        created: None,
        ports: Vec::new(),
        kind: "LoadBalancer",
        slices: Vec::new(),
    }
}

impl Service {
    pub fn tcp(self, port: u16) -> Service {
        self.port(&format!("tcp{port}"), "TCP", port)
    }

    pub fn udp(self, port: u16) -> Service {
        self.port(&format!("udp{port}"), "UDP", port)
    }

    pub fn port(mut self, name: &str, protocol: &'static str, port: u16) -> Service {
        self.ports.push((name.into(), protocol, port));
        self
    }

    /// Lines under `spec:`, indented by two.
    pub fn spec(mut self, line: &str) -> Service {
        let _ = writeln!(self.spec, "  {line}");
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Service {
        self.annotations.push((key.into(), value.into()));
        self
    }

    pub fn created(mut self, at: &str) -> Service {
        self.created = Some(at.into());
        self
    }

    pub fn namespace(mut self, namespace: &str) -> Service {
        self.namespace = namespace.into();
        self
    }

    pub fn kind(mut self, kind: &'static str) -> Service {
        self.kind = kind;
        self
    }

    pub fn dual_stack(self) -> Service {
        self.spec("ipFamilyPolicy: RequireDualStack")
            .spec("ipFamilies: [IPv4, IPv6]")
    }

    /// One slice with these ready endpoints, every port of the Service mapped to `port`.
    pub fn endpoints<A: ToString>(
        mut self,
        addresses: impl IntoIterator<Item = A>,
        port: u16,
    ) -> Service {
        let endpoints: Vec<Endpoint> = addresses
            .into_iter()
            .map(|a| ready(&a.to_string()))
            .collect();
        let v6 = endpoints.first().is_some_and(|e| e.address.contains(':'));
        self.slices.push(Slice {
            family: if v6 { "IPv6" } else { "IPv4" },
            ports: self
                .ports
                .iter()
                .map(|(name, protocol, _)| (name.clone(), *protocol, port))
                .collect(),
            endpoints,
        });
        self
    }

    /// As it would stand in a file.
    pub fn yaml(&self) -> String {
        let mut out = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: {}\n",
            self.name, self.namespace
        );
        if let Some(created) = &self.created {
            let _ = writeln!(out, "  creationTimestamp: \"{created}\"");
        }
        if !self.annotations.is_empty() {
            out += "  annotations:\n";
            for (key, value) in &self.annotations {
                let _ = writeln!(out, "    {key}: {}", serde_json::to_string(value).unwrap());
            }
        }
        let _ = write!(out, "spec:\n  type: {}\n{}", self.kind, self.spec);
        if !self.ports.is_empty() {
            out += "  ports:\n";
            for (name, protocol, port) in &self.ports {
                let _ = writeln!(
                    out,
                    "  - {{name: {name}, protocol: {protocol}, port: {port}}}"
                );
            }
        }
        for (n, slice) in self.slices.iter().enumerate() {
            out += "---\n";
            out += &slice.yaml(&self.namespace, &self.name, &format!("{}-{n}", self.name));
        }
        out
    }
}

impl Slice {
    pub fn yaml(&self, namespace: &str, service: &str, name: &str) -> String {
        let mut out = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{kubernetes.io/service-name: {service}}}\naddressType: {}\nports:\n",
            self.family
        );
        for (name, protocol, port) in &self.ports {
            let _ = writeln!(
                out,
                "- {{name: {name}, protocol: {protocol}, port: {port}}}"
            );
        }
        if self.endpoints.is_empty() {
            out += "endpoints: []\n";
        } else {
            out += "endpoints:\n";
        }
        for endpoint in &self.endpoints {
            let _ = writeln!(
                out,
                "- {{addresses: [\"{}\"], conditions: {{{}}}}}",
                endpoint.address, endpoint.conditions
            );
        }
        out
    }
}

pub fn ready(address: &str) -> Endpoint {
    Endpoint {
        address: address.into(),
        conditions: "ready: true, serving: true, terminating: false".into(),
    }
}

pub fn not_ready(address: &str) -> Endpoint {
    Endpoint {
        address: address.into(),
        conditions: "ready: false, serving: false, terminating: false".into(),
    }
}

pub fn terminating(address: &str) -> Endpoint {
    Endpoint {
        address: address.into(),
        conditions: "ready: false, serving: true, terminating: true".into(),
    }
}
