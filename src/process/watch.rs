//! Notices that the configuration file, or a file that it names, has changed.

use std::path::PathBuf;

use crate::config::FileVersion;
use crate::gateway::Snapshot;

/// The versions of the watched files when they were last read.
pub(super) struct Watch {
    files: Vec<PathBuf>,
    read: Vec<Option<FileVersion>>,
    seen: Vec<Option<FileVersion>>,
}

impl Watch {
    /// Starts with the versions that the snapshot was compiled from: anything written since then is
    /// a change.
    pub(super) fn new(snapshot: &Snapshot) -> Self {
        let (files, read): (Vec<_>, Vec<_>) = snapshot.files.iter().cloned().unzip();
        Self { seen: read.clone(), files, read }
    }

    /// The current versions.
    pub(super) async fn current(&self) -> Vec<Option<FileVersion>> {
        let files = self.files.clone();
        let looking = tokio::task::spawn_blocking(move || {
            files.iter().map(|file| FileVersion::current(file)).collect()
        });
        looking.await.unwrap_or_else(|_| self.seen.clone())
    }

    /// Whether a file has changed since it was read and was stable for one check: an editor may
    /// still be writing.
    pub(super) async fn changed(&mut self) -> bool {
        let now = self.current().await;
        let is_stable = now == self.seen;
        self.seen = now;
        is_stable && self.seen != self.read
    }

    /// Records versions that were read and rejected, so that they are not tried again.
    pub(super) fn rejected(&mut self, versions: Vec<Option<FileVersion>>) {
        self.seen.clone_from(&versions);
        self.read = versions;
    }
}
