//! The CPU time of a process during the measurement, by thread, in nanoseconds as the kernel counts.

use std::collections::BTreeMap;
use std::{fs, io};

/// The CPU seconds and the name of each thread so far, by its id.
#[derive(Debug, Default)]
pub(crate) struct Usage(BTreeMap<u32, (String, f64)>);

impl Usage {
    /// Without a process, nothing.
    pub(crate) fn read(process: Option<u32>) -> io::Result<Self> {
        let Some(process) = process else { return Ok(Self::default()) };
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{process}/task"))? {
            let entry = entry?;
            // A thread may end at any time.
            let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
            let Ok(used) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
            let number = entry.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
            threads.insert(number, (name.trim_end().to_owned(), seconds(&used)?));
        }
        Ok(Self(threads))
    }

    /// The CPU time of each thread since `before`, as JSON.
    pub(crate) fn since(&self, before: &Self) -> String {
        let used = self.0.iter().map(|(number, (name, now))| {
            let earlier = before.0.get(number).map_or(0.0, |(_, seconds)| *seconds);
            format!("[{name:?}, {:.6}]", now - earlier)
        });
        format!("[{}]", used.collect::<Vec<_>>().join(", "))
    }
}

/// The CPU time of the calling thread.
pub(crate) fn own_seconds() -> io::Result<f64> {
    seconds(&fs::read_to_string("/proc/self/schedstat")?)
}

fn seconds(schedstat: &str) -> io::Result<f64> {
    let nanos: f64 = schedstat.split(' ').next().and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(nanos / 1e9)
}
