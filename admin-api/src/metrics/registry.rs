//! The recorder behind the `metrics` facade, one per appliance.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ::metrics::{Recorder, with_local_recorder};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

/// What a histogram hears is kept one by one until a scrape or this; with nobody to scrape it
/// would grow for ever.
const UPKEEP: Duration = Duration::from_secs(30);

/// Where one appliance records, and what renders it.
pub struct Registry {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    upkeep: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Why there is no registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A histogram without buckets.
    #[error("a histogram cannot be made: {0}")]
    Buckets(#[from] BuildError),
    /// No thread can be made.
    #[error("no thread for the metrics can be made: {0}")]
    Thread(#[from] io::Error),
}

impl Registry {
    /// An empty one, whose histograms have the upper bounds given by name. Units stay where the
    /// names have them: the exporter adds no suffix.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`].
    pub fn start(histograms: &[(&str, &[f64])]) -> Result<Registry, RegistryError> {
        let mut builder = PrometheusBuilder::new();
        for (name, bounds) in histograms {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds)?;
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let upkept = handle.clone();
        let (until, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("weir-metrics".into())
            .spawn(move || {
                while ended.recv_timeout(UPKEEP) == Err(RecvTimeoutError::Timeout) {
                    upkept.run_upkeep();
                }
            })?;
        Ok(Registry {
            recorder: Arc::new(recorder),
            handle,
            upkeep: Some((until, thread)),
        })
    }

    /// Where to record.
    pub fn recorder(&self) -> Arc<dyn Recorder + Send + Sync> {
        Arc::clone(&self.recorder) as _
    }

    /// Runs `record` with this recorder as the calling thread's.
    pub fn record<T>(&self, record: impl FnOnce() -> T) -> T {
        with_local_recorder(&*self.recorder, record)
    }

    /// What was recorded, as text: families by name, no empty lines.
    pub fn render(&self) -> String {
        let text = self.handle.render();
        // An empty line ends a family, whose order is that of a hash map; one in a help text or a
        // label is escaped.
        let mut families: Vec<&str> = text.split_terminator("\n\n").collect();
        families.sort_unstable();
        let lines = families.iter().flat_map(|family| [*family, "\n"]);
        lines.collect()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some((until, thread)) = self.upkeep.take() {
            drop(until);
            // A panic of it was reported by its own hook.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::metrics::{Unit, counter, describe_gauge, describe_histogram, gauge, histogram};

    #[test]
    fn text() {
        let registry = Registry::start(&[("weir_d_seconds", &[0.1, 1.0])]).expect("registry");
        registry.record(|| {
            describe_histogram!("weir_d_seconds", Unit::Seconds, "Ds, in seconds.");
            for seconds in [0.05, 0.1, 0.5, 99.0] {
                histogram!("weir_d_seconds").record(seconds);
            }
            describe_gauge!("weir_g", Unit::Count, "Gs.");
            gauge!("weir_g", "a" => "q\"b\\c\nd").set(3.0);
            counter!("weir_c_total").absolute(7);
        });
        let expected = "# HELP weir_d_seconds Ds, in seconds.\n# TYPE weir_d_seconds histogram\n\
            weir_d_seconds_bucket{le=\"0.1\"} 2\nweir_d_seconds_bucket{le=\"1\"} 3\n\
            weir_d_seconds_bucket{le=\"+Inf\"} 4\nweir_d_seconds_sum 99.65\nweir_d_seconds_count 4\n\
            # HELP weir_g Gs.\n# TYPE weir_g gauge\nweir_g{a=\"q\\\"b\\\\c\\nd\"} 3\n\
            # TYPE weir_c_total counter\nweir_c_total 7\n";
        assert_eq!(registry.render(), expected);
        assert_eq!(registry.render(), expected, "a scrape takes nothing away");
    }

    #[test]
    fn two_in_one_process_are_two() {
        let [a, b] = [(); 2].map(|()| Registry::start(&[]).expect("registry"));
        a.record(|| counter!("weir_c_total").increment(1));
        assert!(a.render().contains("weir_c_total 1\n"));
        assert_eq!(b.render(), "");
    }
}
