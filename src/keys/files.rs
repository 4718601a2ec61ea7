//! Keys in files, which are read again when the files change: no reload and no signal is needed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::{Shared, Source};
use crate::config::{FileVersion, read_bounded};
use crate::token::{Algorithms, KeyError, KeySet, LeftOut, key_from_pem};

/// How often the files are checked for changes.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Why key files cannot be used.
#[derive(Debug, thiserror::Error)]
enum FileFault {
    #[error("`{}` cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("`{}`: {source}", path.display())]
    Unusable { path: PathBuf, source: KeyError },
    #[error("{0}")]
    NotForAlgorithms(KeyError),
    #[error("`{}` contains no usable key", .0.display())]
    NoKey(PathBuf),
}

/// Keys that were loaded from files.
struct LoadedKeys {
    keys: KeySet,
    left_out: Vec<LeftOut>,
    digest: [u8; 32],
}

/// A digest that identifies one version of several files. The boundaries between them count.
pub fn digest<'a>(contents: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for content in contents {
        context.update(&(content.len() as u64).to_be_bytes());
        context.update(content);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// Watches the files as long as the running configuration needs their keys.
pub(super) async fn watch(shared: Arc<Shared>) {
    let files: Arc<[PathBuf]> = match &shared.settings.source {
        Source::Pem(files) => files.as_slice().into(),
        Source::JwksFile(file) => std::slice::from_ref(file).into(),
        Source::Secret(_) | Source::Remote(_) => return,
    };
    let mut looks = tokio::time::interval(POLL_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first check reads the files: they may have changed since the configuration was compiled.
    let (mut seen, mut read) = (Vec::new(), Vec::new());
    while !shared.is_replaced.load(Ordering::Relaxed) {
        looks.tick().await;
        let Some(now) = blocking(&files, |files| {
            files.iter().map(|file| FileVersion::current(file)).collect::<Vec<_>>()
        })
        .await
        else {
            continue;
        };
        // A file that changed since the previous check may still be being written.
        let is_stable = now == seen;
        seen = now;
        if !is_stable || seen == read {
            continue;
        }
        read.clone_from(&seen);
        let for_read = Arc::clone(&shared);
        if let Some(result) = blocking(&files, move |files| {
            read_files(files, &for_read.settings.source, for_read.settings.algorithms)
        })
        .await
        {
            shared.apply_loaded(result);
        }
    }
}

/// Runs disk access on the blocking pool. Returns `None` if it did not complete.
async fn blocking<T: Send + 'static>(
    files: &Arc<[PathBuf]>,
    look: impl FnOnce(&[PathBuf]) -> T + Send + 'static,
) -> Option<T> {
    let files = Arc::clone(files);
    tokio::task::spawn_blocking(move || look(&files)).await.ok()
}

fn read_files(
    files: &[PathBuf],
    source: &Source,
    algorithms: Algorithms,
) -> Result<LoadedKeys, FileFault> {
    let mut contents = Vec::new();
    for path in files {
        contents.push(
            read_bounded(path)
                .map_err(|source| FileFault::Unreadable { path: path.clone(), source })?,
        );
    }
    let digest = digest(contents.iter().map(Vec::as_slice));
    let unusable = |path: &PathBuf, source| FileFault::Unusable { path: path.clone(), source };
    let (keys, left_out) = if let (Source::JwksFile(path), [json]) = (source, contents.as_slice()) {
        KeySet::from_jwks(json, algorithms).map_err(|error| unusable(path, error))?
    } else {
        let read = files
            .iter()
            .zip(&contents)
            .map(|(path, pem)| key_from_pem(pem).map_err(|error| unusable(path, error)));
        let keys = read.map(|read| read.map(|(key, _)| key)).collect::<Result<_, _>>()?;
        (KeySet::from_keys(keys, algorithms).map_err(FileFault::NotForAlgorithms)?, Vec::new())
    };
    match files {
        [path, ..] if keys.is_empty() => Err(FileFault::NoKey(path.clone())),
        _ => Ok(LoadedKeys { keys, left_out, digest }),
    }
}

impl Shared {
    fn apply_loaded(&self, result: Result<LoadedKeys, FileFault>) {
        let mut state = self.lock();
        match result {
            Ok(LoadedKeys { digest, .. }) if digest == state.contents_digest => {
                state.failing = None;
            }
            Ok(LoadedKeys { keys, left_out, digest }) => {
                self.log_left_out(&state.left_out, &left_out);
                let count = keys.len();
                // Log it only once it is true.
                self.live.replace(keys);
                tracing::info!(
                    issuer = self.name(),
                    keys = count,
                    "the key file has changed; its new keys are in use"
                );
                state.left_out = left_out;
                state.contents_digest = digest;
                state.failing = None;
            }
            Err(fault) => {
                tracing::error!(issuer = self.name(), cause = %fault, "the key file cannot be used; the previous keys stay in use");
                state.failing = Some(fault.to_string());
            }
        }
    }
}
