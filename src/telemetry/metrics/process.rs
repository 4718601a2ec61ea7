//! The operating system's data about this process, under the names that all Prometheus client
//! libraries use.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};

/// Reads `/proc` on each scrape. Values that cannot be read have no series.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(stat) = Stat::read() {
            let help = "CPU time that the process has used, in seconds.";
            let metric = encoder.encode_descriptor(
                "process_cpu_seconds",
                help,
                None,
                MetricType::Counter,
            )?;
            ConstCounter::new(stat.cpu_seconds).encode(metric)?;
            let help = "Memory of the process that is in RAM, in bytes.";
            gauge(&mut encoder, "process_resident_memory_bytes", help, stat.resident_bytes)?;
            let help = "Address space of the process, in bytes.";
            gauge(&mut encoder, "process_virtual_memory_bytes", help, stat.virtual_bytes)?;
            if let Some(booted) = boot_time() {
                let help = "When the process started, in seconds since 1970.";
                let started = booted + stat.started_seconds;
                gauge(&mut encoder, "process_start_time_seconds", help, started)?;
            }
        }
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            // One of them is the one that reads the directory.
            let open = descriptors.count().saturating_sub(1);
            let help = "Open file descriptors.";
            gauge(&mut encoder, "process_open_fds", help, open as f64)?;
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            let help = "The maximum number of open file descriptors.";
            gauge(&mut encoder, "process_max_fds", help, most as f64)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// Part of `/proc/self/stat` (proc_pid_stat(5)).
struct Stat {
    cpu_seconds: f64,
    started_seconds: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The program's name, in parentheses, may contain spaces and parentheses.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // The manual page numbers the fields from 1; the third is the first one here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let page = rustix::param::page_size() as f64;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            started_seconds: field(22)? as f64 / ticks,
            virtual_bytes: field(23)? as f64,
            resident_bytes: field(24)? as f64 * page,
        })
    }
}

/// When the system booted, in seconds since 1970.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let rest = "S 1 1 1 0 -1 4194560 1 2 3 4 250 150 0 0 20 0 7 0 5000 1048576 16 18446744073709551615";
        for name in ["portcullis", "a b", "x) (y"] {
            let stat = Stat::parse(&format!("42 ({name}) {rest}")).unwrap();
            let ticks = rustix::param::clock_ticks_per_second() as f64;
            assert!((stat.cpu_seconds - 400.0 / ticks).abs() < 1e-9);
            assert!((stat.started_seconds - 5000.0 / ticks).abs() < 1e-9);
            assert!((stat.virtual_bytes - 1_048_576.0).abs() < 1e-9);
            let pages = stat.resident_bytes / rustix::param::page_size() as f64;
            assert!((pages - 16.0).abs() < 1e-9);
        }
        assert!(Stat::parse("").is_none() && Stat::parse("42 (x) S 1").is_none());
    }
}
