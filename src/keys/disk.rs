//! Stores the last good key set of a remote issuer in a file, so that a restart during an outage of
//! the issuer can still verify tokens.
//!
//! Public keys are not secret, but whoever can write this file decides whose tokens are trusted.
//! The file is therefore used only if it is a regular file that belongs to the user who runs the
//! gateway, if nobody else can write it, and if it was written for the same issuer and address.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::{KeySettings, LastGood, Place, Remote, digest};

/// The file with the last good key set of one issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    path: PathBuf,
    /// The digest of issuer and address, as text.
    digest: String,
    remote: Remote,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSet {
    /// The digest of issuer and address, so that a renamed file is not taken for another issuer's.
    digest: String,
    /// In Unix seconds.
    fetched_at: u64,
    /// The JWK Set as it was fetched.
    document: String,
}

/// Why an existing file is not used.
#[derive(Debug, thiserror::Error)]
pub enum CacheFault {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is a symbolic link, a directory or a pipe.
    #[error("it is not a regular file")]
    NotAFile,
    /// Another user owns it.
    #[error("it belongs to another user")]
    Owner,
    /// Its group or others can write it.
    #[error("its group or others can write it")]
    Writable,
    /// Its content is not what was written.
    #[error("it is damaged")]
    Damaged,
    /// Its timestamp is in the future.
    #[error("its keys were fetched in the future: the clock was set back")]
    Future,
}

impl Cache {
    /// The file for the keys of this section.
    pub fn new(settings: &KeySettings, remote: &Remote) -> Self {
        let (kind, url) = match &remote.place {
            Place::Jwks(url) => ("jwks", url),
            Place::Discovery(url) => ("discovery", url),
        };
        let address = format!("{url}?{}", url.query().unwrap_or_default());
        let issuer = settings.issuer.as_deref().unwrap_or_default();
        let digest = digest([kind.as_bytes(), address.as_bytes(), issuer.as_bytes()]);
        let digest = URL_SAFE_NO_PAD.encode(digest);
        Self {
            path: remote.folder.join(format!("jwks-{digest}.json")),
            digest,
            remote: remote.clone(),
        }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are for the same issuer and the same address.
    pub fn is_for_same(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Loads the stored set. Returns `None` if there is no file, or if the set is too old.
    ///
    /// # Errors
    /// A [`CacheFault`] if the file exists but must not be used.
    pub fn load(&self, now: u64) -> Result<Option<LastGood>, CacheFault> {
        let named = match fs::symlink_metadata(&self.path) {
            Ok(named) => named,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !named.is_file() {
            return Err(CacheFault::NotAFile);
        }
        let file = File::open(&self.path)?;
        let opened = file.metadata()?;
        if !opened.is_file() || (opened.dev(), opened.ino()) != (named.dev(), named.ino()) {
            return Err(CacheFault::NotAFile);
        }
        if opened.uid() != own_user()? {
            return Err(CacheFault::Owner);
        }
        if opened.mode() & 0o022 != 0 {
            return Err(CacheFault::Writable);
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        let kept: StoredSet = serde_json::from_slice(&bytes).map_err(|_| CacheFault::Damaged)?;
        if bytes.len() as u64 > MAX_FILE_BYTES || kept.digest != self.digest {
            return Err(CacheFault::Damaged);
        }
        if kept.fetched_at > now.saturating_add(CLOCK_SKEW) {
            return Err(CacheFault::Future);
        }
        let good = LastGood { document: kept.document.into(), fetched_at: kept.fetched_at };
        Ok((!self.remote.is_too_old(now.saturating_sub(good.fetched_at))).then_some(good))
    }

    /// Replaces the stored set. On failure, the previous one is kept.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, good: &LastGood) -> io::Result<()> {
        let document = String::from_utf8(good.document.to_vec()).map_err(io::Error::other)?;
        let kept = serde_json::to_vec(&StoredSet {
            digest: self.digest.clone(),
            fetched_at: good.fetched_at,
            document,
        })?;
        // The name is unique to this process, so two gateways never write to the same file.
        let new = self.path.with_extension(format!("{}.new", std::process::id()));
        let written = write_new(&new, &kept).and_then(|()| fs::rename(&new, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        } else if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        written
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A killed process with the same pid may have left one behind.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The effective user of this process. `/proc/self` itself belongs to root if the binary has
/// capabilities, but its content is correct.
fn own_user() -> io::Result<u32> {
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok());
    effective.ok_or_else(|| io::Error::other("/proc/self/status has no Uid line"))
}

/// The maximum size of the file, in bytes: the largest set, escaped, with some room.
const MAX_FILE_BYTES: u64 = 3 * 1024 * 1024;

/// The tolerated clock difference across restarts of one machine, in seconds.
const CLOCK_SKEW: u64 = 300;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;
    use crate::outbound::Url;
    use crate::token::Algorithms;

    const NOW: u64 = 1_780_000_000;
    const DAY: Duration = Duration::from_hours(24);

    fn cache(folder: &Path, issuer: &str, url: &str) -> Cache {
        let remote = Remote {
            place: Place::Jwks(Url::parse(url).unwrap()),
            refresh: DAY,
            cooldown: DAY,
            max_stale: DAY,
            ca: None,
            allow_http: false,
            folder: folder.to_owned(),
        };
        let source = super::super::Source::Remote(remote.clone());
        let settings = KeySettings {
            name: "corp".into(),
            issuer: Some(issuer.to_owned()),
            algorithms: Algorithms::all(),
            source,
        };
        Cache::new(&settings, &remote)
    }

    fn good() -> LastGood {
        LastGood { document: r#"{"keys":[]}"#.into(), fetched_at: NOW }
    }

    #[test]
    fn stored_keys_are_read_until_they_are_too_old() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), "i", "https://a.test/keys?k=1");
        assert_eq!(cache.load(NOW).unwrap(), None);
        cache.save(&good()).unwrap();
        cache.save(&good()).unwrap();
        assert_eq!(fs::metadata(cache.path()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
        assert_eq!(cache.load(NOW + 86_400).unwrap(), Some(good()));
        assert_eq!(cache.load(NOW + 86_401).unwrap(), None);
        assert!(matches!(cache.load(NOW - 301), Err(CacheFault::Future)));
    }

    #[test]
    fn stored_keys_are_bound_to_issuer_and_url() {
        let folder = tempfile::tempdir().unwrap();
        let one = cache(folder.path(), "i", "https://a.test/keys?k=1");
        one.save(&good()).unwrap();
        for (issuer, url) in [
            ("j", "https://a.test/keys?k=1"),
            ("i", "https://a.test/keys?k=2"),
            ("i", "https://b.test/keys?k=1"),
        ] {
            let other = cache(folder.path(), issuer, url);
            assert_eq!(other.load(NOW).unwrap(), None);
            fs::copy(one.path(), other.path()).unwrap();
            assert!(
                matches!(other.load(NOW), Err(CacheFault::Damaged)),
                "a renamed file still belongs to the other issuer"
            );
        }
    }

    #[test]
    fn files_that_other_users_can_write_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), "i", "https://a.test/keys");
        cache.save(&good()).unwrap();
        for (mode, counts) in
            [(0o620, false), (0o602, false), (0o666, false), (0o644, true), (0o600, true)]
        {
            fs::set_permissions(cache.path(), Permissions::from_mode(mode)).unwrap();
            match cache.load(NOW) {
                Ok(Some(_)) => assert!(counts, "{mode:o}"),
                Err(CacheFault::Writable) => assert!(!counts, "{mode:o}"),
                other => panic!("{mode:o}: {other:?}"),
            }
        }
        // Only root can give a file away; for everyone else, this is what a refusal looks like.
        if std::os::unix::fs::chown(cache.path(), Some(12345), None).is_ok() {
            assert!(matches!(cache.load(NOW), Err(CacheFault::Owner)));
        }
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(cache.path(), &elsewhere).unwrap();
        symlink(&elsewhere, cache.path()).unwrap();
        assert!(matches!(cache.load(NOW), Err(CacheFault::NotAFile)));
        fs::remove_file(cache.path()).unwrap();
        fs::create_dir(cache.path()).unwrap();
        assert!(matches!(cache.load(NOW), Err(CacheFault::NotAFile)));
    }

    #[test]
    fn damaged_files_are_detected() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), "i", "https://a.test/keys");
        cache.save(&good()).unwrap();
        let whole = fs::read(cache.path()).unwrap();
        for damaged in
            [&whole[..whole.len() / 2], b"", b"{}", b"<html>", &[whole.as_slice(), b"x"].concat()]
        {
            fs::write(cache.path(), damaged).unwrap();
            assert!(
                matches!(cache.load(NOW), Err(CacheFault::Damaged)),
                "{}",
                String::from_utf8_lossy(damaged)
            );
        }
    }

    #[test]
    fn an_unwritable_folder_keeps_the_previous_keys() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder.path().join("gone"), "i", "https://a.test/keys");
        assert_eq!(cache.save(&good()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
