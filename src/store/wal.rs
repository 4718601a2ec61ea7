//! Whether the `-wal` still holds every change that was acknowledged, and belongs to the database.
//!
//! SQLite keeps the latest changes in the `-wal`, and its index in the `-shm`. When it opens a
//! database, it takes the `-wal` as it is: one that is missing, or damaged from some point on, counts
//! as if it had never been longer. But if the last process was killed, the index is still there, and
//! says how much was committed. SQLite writes the index after the `-wal`, so it never says too much.
//!
//! SQLite also copies a `-wal` into whatever database is there: with another copy, the result is a
//! mixture of both. But it begins a `-wal` only when the database on the disk holds everything from
//! the one before, and copies only what is committed. So the number in the file itself is at least one
//! lower than that of the first transaction in the `-wal`, at least as high as that of the last one
//! that the index calls copied, and at most as high as that of the last one, whatever was copied
//! since, and at whatever moment a process was killed.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Buf;

use super::files::{NUMBER_AT, is_before, stored_number};
use super::{StoreError, with_suffix};

/// Checks both before SQLite opens the database, which would copy the `-wal` into it.
pub(super) fn check(database: &Path) -> Result<(), StoreError> {
    check_complete(database)?;
    let (wal, index) = (with_suffix(database, "-wal"), with_suffix(database, "-shm"));
    let continues = || -> io::Result<bool> {
        let Some(file) = found(File::open(database))? else { return Ok(true) };
        for _ in 0..LOOKS {
            let Some(wal) = found(File::open(&wal))? else { return Ok(true) };
            let index = found(File::open(&index))?;
            if continues_now(&file, &wal, index.as_ref())? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    match continues() {
        Ok(true) => Ok(()),
        Ok(false) => Err(StoreError::OtherCopy { path: database.to_owned() }),
        Err(source) => Err(StoreError::Open { path: database.to_owned(), source }),
    }
}

/// Whether the `-wal` continues what is in the database. Costs as much as reading it.
pub(super) fn continues(database: &File, wal: &File, index: Option<&File>) -> io::Result<bool> {
    for _ in 0..LOOKS {
        if continues_now(database, wal, index)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The same. `false` is also possible if another process begins the `-wal` anew at this moment.
fn continues_now(database: &File, wal: &File, index: Option<&File>) -> io::Result<bool> {
    // What other processes write meanwhile makes the last number in the `-wal` higher, and what they
    // copy makes the one in the file higher.
    let before = stored_number(database)?.unwrap_or(0);
    let index = index.map_or(Ok(None), Committed::read)?;
    let Some(numbers) = Numbers::read(wal, index.as_ref())? else { return Ok(true) };
    let after = stored_number(database)?.unwrap_or(0);
    let is_older = is_before(after, numbers.first.wrapping_sub(1))
        || numbers.copied.is_some_and(|copied| is_before(after, copied));
    let is_newer = numbers.last.is_some_and(|last| is_before(last, before));
    Ok(!is_older && !is_newer)
}

/// The numbers of transactions in a `-wal`.
struct Numbers {
    /// The last process may have been writing this one.
    first: i32,
    /// The last one that the index calls copied.
    copied: Option<i32>,
    /// The last one that is committed.
    last: Option<i32>,
}

impl Numbers {
    /// `None`: it has none. Other programs do not number theirs, and may leave the header alone.
    fn read(wal: &File, index: Option<&Committed>) -> io::Result<Option<Self>> {
        let mut found = None;
        let mut read = || -> io::Result<()> {
            let wal = io::BufReader::with_capacity(1 << 16, FromStart { file: wal, at: 0 });
            let Some(mut frames) = Frames::begin(wal)? else { return Ok(()) };
            // After a power failure, the index may belong to another one.
            let index = index.filter(|index| index.salt == frames.salt);
            let copied = index.map_or(0, |index| index.copied);
            let mut latest = None;
            for place in 1.. {
                if !frames.next()? {
                    break;
                }
                if big_endian(&frames.frame) == HEADER_PAGE {
                    let mut number = &frames.frame[FRAME_HEADER + NUMBER_AT..];
                    latest = Some(number.get_i32());
                }
                let Some(first) = latest else { continue };
                let numbers = found.get_or_insert(Self { first, copied: None, last: None });
                if place <= copied {
                    numbers.copied = latest;
                }
                // With a size of the database, a frame ends a transaction.
                if big_endian(&frames.frame[4..]) != 0 {
                    numbers.last = latest;
                }
            }
            Ok(())
        };
        match read() {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(found),
        }
    }
}

/// Reads an open file from its beginning, wherever others read it.
struct FromStart<'file> {
    file: &'file File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(bytes, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Checks this before SQLite opens the database, which would create the index anew.
fn check_complete(database: &Path) -> Result<(), StoreError> {
    let (wal, index) = (with_suffix(database, "-wal"), with_suffix(database, "-shm"));
    let read = || -> io::Result<bool> {
        let Some(index) = found(File::open(&index))? else { return Ok(true) };
        loop {
            let Some(committed) = Committed::read(&index)? else { return Ok(true) };
            let is_complete = match found(File::open(&wal))? {
                Some(wal) => committed.is_in(wal)?,
                None => committed.is_in(io::empty())?,
            };
            // Another process may have changed both.
            if is_complete || Committed::read(&index)? == Some(committed) {
                return Ok(is_complete);
            }
        }
    };
    match read() {
        Ok(true) => Ok(()),
        Ok(false) => Err(StoreError::LostChanges { path: database.to_owned() }),
        Err(source) => Err(StoreError::Open { path: wal, source }),
    }
}

/// Whether the `-wal` of an open database is shorter than its index says.
pub(super) fn is_truncated(wal: &File, index: &File) -> io::Result<bool> {
    loop {
        let Some(committed) = Committed::read(index)? else { return Ok(false) };
        if wal.metadata()?.len() >= committed.length() {
            return Ok(false);
        }
        // SQLite itself may just have emptied it.
        if Committed::read(index)? == Some(committed) {
            return Ok(true);
        }
    }
}

/// The number of the last transaction in the `-wal` of an open database. `None`: it is not known.
pub(super) fn last_number(wal: &File, index: &File) -> io::Result<Option<i32>> {
    loop {
        let Some(committed) = Committed::read(index)? else { return Ok(None) };
        let last = committed.last_number(wal);
        // SQLite may just have begun it anew.
        if Committed::read(index)?.is_some_and(|now| now.salt == committed.salt) {
            return match last {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
                last => last,
            };
        }
    }
}

/// What the index says about the `-wal` (SQLite's “WAL-mode file format”, §2.1 and §2.2).
#[derive(Debug, PartialEq, Eq)]
struct Committed {
    /// How many frames are committed.
    frames: u32,
    /// The size of a page in bytes.
    page: usize,
    /// The checksum of the last one.
    checksum: [u32; 2],
    /// What distinguishes this `-wal` from those before it: a counter and a random number.
    salt: [u32; 2],
    /// How many of them the database holds.
    copied: u32,
}

impl Committed {
    /// `None`: no changes are committed, or the index is not valid: a process is changing it, or it
    /// did not survive a power failure.
    fn read(index: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; INDEX_HEADER];
        match index.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let (header, rest) = bytes.split_at(INDEX_COPY);
        let (second, rest) = rest.split_at(INDEX_COPY);
        let number = |at: usize| native(&header[at..]);
        let checksum = checksum([0; 2], &header[..INDEX_CHECKSUM], native);
        let is_valid = header == second
            && header[12] == 1
            && number(0) == INDEX_VERSION
            && checksum == [number(INDEX_CHECKSUM), number(INDEX_CHECKSUM + 4)];
        let frames = number(16);
        if !is_valid || frames == 0 {
            return Ok(None);
        }
        // The largest size does not fit and is written as 1.
        let page = match u16::from_ne_bytes([header[14], header[15]]) {
            1 => 1 << 16,
            size => usize::from(size),
        };
        Ok(Some(Self {
            frames,
            page,
            checksum: [number(24), number(28)],
            salt: [big_endian(&header[32..]), big_endian(&header[36..])],
            copied: native(rest),
        }))
    }

    /// The length of a `-wal` that holds all of this.
    fn length(&self) -> u64 {
        self.place(self.frames)
    }

    /// Where the frame is that follows so many others.
    fn place(&self, frames: u32) -> u64 {
        WAL_HEADER as u64 + u64::from(frames) * (FRAME_HEADER + self.page) as u64
    }

    /// The number of the last transaction. Other programs may have written some without one.
    fn last_number(&self, wal: &File) -> io::Result<Option<i32>> {
        for frame in (0..self.frames).rev() {
            let mut number = [0; 4];
            wal.read_exact_at(&mut number, self.place(frame))?;
            if u32::from_be_bytes(number) == HEADER_PAGE {
                let at = self.place(frame) + (FRAME_HEADER + NUMBER_AT) as u64;
                wal.read_exact_at(&mut number, at)?;
                return Ok(Some(i32::from_be_bytes(number)));
            }
        }
        Ok(None)
    }

    /// Whether the `-wal` with this content holds all of it, or something newer.
    fn is_in(&self, wal: impl Read) -> io::Result<bool> {
        if self.copied >= self.frames {
            return Ok(true);
        }
        match self.follow(io::BufReader::with_capacity(1 << 16, wal)) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            followed => followed,
        }
    }

    fn follow(&self, wal: impl Read) -> io::Result<bool> {
        let Some(mut frames) = Frames::begin(wal)? else { return Ok(false) };
        if frames.salt[0] != self.salt[0] {
            // After a power failure, the index may be older than the `-wal`: everything that it
            // knows had been copied before the next `-wal` began.
            return Ok(frames.salt[0].wrapping_sub(self.salt[0]) < u32::MAX / 2);
        }
        for _ in 0..self.frames {
            if !frames.next()? {
                return Ok(false);
            }
        }
        Ok((frames.salt, frames.sum) == (self.salt, self.checksum))
    }
}

/// Reads the pages in a `-wal`, each in a frame (SQLite's file format, §4.1).
struct Frames<Wal> {
    wal: Wal,
    /// Reads a number as the checksums do.
    number: fn(&[u8]) -> u32,
    salt: [u32; 2],
    /// The checksum of everything so far.
    sum: [u32; 2],
    /// The last one.
    frame: Vec<u8>,
}

impl<Wal: Read> Frames<Wal> {
    /// `None`: it does not begin as a `-wal` does.
    fn begin(mut wal: Wal) -> io::Result<Option<Self>> {
        let mut header = [0; WAL_HEADER];
        wal.read_exact(&mut header)?;
        let number: fn(&[u8]) -> u32 = match big_endian(&header) {
            MAGIC_LITTLE => little_endian,
            MAGIC_BIG => big_endian,
            _ => return Ok(None),
        };
        let [page, salt, other_salt, first, second] =
            [8, 16, 20, 24, 28].map(|at| big_endian(&header[at..]));
        let sum = checksum([0; 2], &header[..24], number);
        let page = usize::try_from(page).unwrap_or(usize::MAX);
        if sum != [first, second] || !PAGES.contains(&page) {
            return Ok(None);
        }
        let frame = vec![0; FRAME_HEADER + page];
        Ok(Some(Self { wal, number, salt: [salt, other_salt], sum, frame }))
    }

    /// Reads the next one. `false`: what follows is older or damaged.
    fn next(&mut self) -> io::Result<bool> {
        self.wal.read_exact(&mut self.frame)?;
        let frame = &self.frame;
        // Each checksum covers everything before it.
        self.sum = checksum(self.sum, &frame[..8], self.number);
        self.sum = checksum(self.sum, &frame[FRAME_HEADER..], self.number);
        let written = [16, 20].map(|at| big_endian(&frame[at..]));
        let salt = [8, 12].map(|at| big_endian(&frame[at..]));
        Ok((written, salt) == (self.sum, self.salt))
    }
}

/// SQLite's checksum of these bytes, which continues `sum`.
fn checksum(sum: [u32; 2], bytes: &[u8], number: impl Fn(&[u8]) -> u32) -> [u32; 2] {
    bytes.chunks_exact(8).fold(sum, |[first, second], pair| {
        let first = first.wrapping_add(number(pair)).wrapping_add(second);
        [first, second.wrapping_add(number(&pair[4..])).wrapping_add(first)]
    })
}

fn native(mut bytes: &[u8]) -> u32 {
    bytes.get_u32_ne()
}

fn big_endian(mut bytes: &[u8]) -> u32 {
    bytes.get_u32()
}

fn little_endian(mut bytes: &[u8]) -> u32 {
    bytes.get_u32_le()
}

/// `None`: there is no such file.
pub(super) fn found<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// How often to look before the database counts as another one.
const LOOKS: usize = 3;

/// The header of the index twice, and how many frames were copied.
const INDEX_HEADER: usize = 2 * INDEX_COPY + 4;

const INDEX_COPY: usize = 48;

/// Where the checksum of the header is.
const INDEX_CHECKSUM: usize = 40;

const INDEX_VERSION: u32 = 3_007_000;

const WAL_HEADER: usize = 32;

const FRAME_HEADER: usize = 24;

/// How long a page may be in bytes.
const PAGES: RangeInclusive<usize> = 512..=1 << 16;

/// The page that begins with the header of the database.
const HEADER_PAGE: u32 = 1;

/// How a `-wal` begins, by the byte order of its checksums.
const MAGIC_LITTLE: u32 = 0x377F_0682;
const MAGIC_BIG: u32 = 0x377F_0683;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use sqlx::{Connection, Executor};

    use super::*;
    use crate::store::{RevocationRow, Store, StoreSettings, test_settings};

    /// The settings of a database that a process used until it was killed: it had revoked three
    /// tokens.
    async fn killed(folder: &Path) -> (StoreSettings, PathBuf) {
        let (used, left) = (folder.join("used"), folder.join("left"));
        fs::create_dir(&used).unwrap();
        fs::create_dir(&left).unwrap();
        let store = Store::open(&test_settings(&used)).await.unwrap();
        for value in ["a", "b", "c"] {
            store.revoke(&[revocation(value)]).await.unwrap();
        }
        for file in fs::read_dir(&used).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), left.join(file.file_name())).unwrap();
        }
        store.close().await;
        let settings = test_settings(&left);
        let database = settings.database.file().unwrap().to_owned();
        (settings, database)
    }

    fn revocation(value: &str) -> RevocationRow {
        RevocationRow {
            kind: "jti".into(),
            value: value.into(),
            scope: "*".into(),
            revoked_at: 1,
            seq: 0,
        }
    }

    #[tokio::test]
    async fn a_complete_wal_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (settings, _) = killed(folder.path()).await;
        let store = Store::open(&settings).await.unwrap();
        assert_eq!(store.revocations_after(0).await.unwrap().len(), 3);
        store.close().await;
        // Closing it has copied and removed the `-wal`.
        Store::open(&settings).await.unwrap().close().await;
    }

    #[tokio::test]
    async fn a_wal_without_what_was_committed_is_refused_until_its_index_is_gone() {
        type Damage = fn(&Path);
        let damages: [Damage; 5] = [
            |wal| fs::remove_file(wal).unwrap(),
            |wal| fs::write(wal, "").unwrap(),
            |wal| {
                let wal = fs::OpenOptions::new().write(true).open(wal).unwrap();
                // One byte of the last frame.
                wal.set_len(wal.metadata().unwrap().len() - 1).unwrap();
            },
            |wal| flip(wal, 4),
            |wal| flip(wal, fs::metadata(wal).unwrap().len() - 2000),
        ];
        for (index, damage) in damages.into_iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let (settings, database) = killed(folder.path()).await;
            damage(&with_suffix(&database, "-wal"));
            for _ in 0..2 {
                for error in [
                    Store::open(&settings).await.unwrap_err(),
                    Store::open_read_only(&settings).await.unwrap_err(),
                ] {
                    let error = error.to_string();
                    assert!(
                        error.contains("-wal is missing or damaged") && error.contains("-shm"),
                        "{index}: {error}"
                    );
                }
            }
            fs::remove_file(with_suffix(&database, "-shm")).unwrap();
            fs::remove_file(with_suffix(&database, "-lock")).unwrap();
            // Without the beginning, there are no tables.
            match Store::open(&settings).await {
                Ok(store) => {
                    assert_eq!(store.revocations_after(0).await.unwrap().len(), 2, "{index}");
                    store.close().await;
                }
                Err(error) => {
                    assert!(error.to_string().contains("has no tables: what was in it is lost"));
                    assert!(matches!(index, 0 | 1 | 3), "{index}: {error}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_database_without_what_was_acknowledged_is_refused_until_its_note_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        let database = settings.database.file().unwrap().to_owned();
        let store = Store::open(&settings).await.unwrap();
        store.revoke(&[revocation("a")]).await.unwrap();
        store.close().await;
        let older = fs::read(&database).unwrap();
        let store = Store::open(&settings).await.unwrap();
        store.revoke(&[revocation("b")]).await.unwrap();
        store.close().await;
        // Neither `-wal` nor `-shm` is left that could tell.
        let newest = fs::read(&database).unwrap();
        fs::write(&database, older).unwrap();
        for _ in 0..2 {
            let error = Store::open(&settings).await.unwrap_err().to_string();
            assert!(
                error.contains("lacks changes that were acknowledged") && error.contains("-lock"),
                "{error}"
            );
        }
        let older = fs::read(&database).unwrap();
        fs::write(&database, newest).unwrap();
        Store::open(&settings).await.unwrap().close().await;
        fs::write(&database, older).unwrap();
        fs::remove_file(with_suffix(&database, "-lock")).unwrap();
        let store = Store::open(&settings).await.unwrap();
        assert_eq!(store.revocations_after(0).await.unwrap().len(), 1);
        store.close().await;
        // What was noted of another database says nothing about this one.
        fs::remove_file(&database).unwrap();
        Store::open(&settings).await.unwrap().close().await;
    }

    /// SQLite would make a mixture of both.
    #[tokio::test]
    async fn an_older_copy_next_to_a_newer_wal_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let settings = test_settings(folder.path());
        let database = settings.database.file().unwrap().to_owned();
        let store = Store::open(&settings).await.unwrap();
        let restart = async || {
            store.connections.writer().execute("PRAGMA wal_checkpoint(RESTART)").await.unwrap();
        };
        store.revoke(&[revocation("a")]).await.unwrap();
        restart().await;
        let older = fs::read(&database).unwrap();
        store.revoke(&[revocation("b")]).await.unwrap();
        restart().await;
        store.revoke(&[revocation("c")]).await.unwrap();
        let newest = fs::read(&database).unwrap();
        let index = fs::read(with_suffix(&database, "-shm")).unwrap();
        let left = folder.path().join("left");
        fs::create_dir(&left).unwrap();
        let settings = test_settings(&left);
        let killed = settings.database.file().unwrap().to_owned();
        fs::copy(with_suffix(&database, "-wal"), with_suffix(&killed, "-wal")).unwrap();
        fs::write(&killed, &older).unwrap();
        for has_index in [true, false] {
            if has_index {
                fs::write(with_suffix(&killed, "-shm"), &index).unwrap();
            } else {
                fs::remove_file(with_suffix(&killed, "-shm")).unwrap();
            }
            for error in [
                Store::open(&settings).await.unwrap_err(),
                Store::open_read_only(&settings).await.unwrap_err(),
            ] {
                let error = error.to_string();
                assert!(
                    error.contains("is not what the file") && error.contains("-wal continues"),
                    "{error}"
                );
            }
            assert!(fs::read(&killed).unwrap() == older, "it is unchanged");
        }
        fs::write(&killed, newest).unwrap();
        let right = Store::open(&settings).await.unwrap();
        assert_eq!(right.revocations_after(0).await.unwrap().len(), 3);
        right.close().await;

        // While it is in use, what is in memory stays out of it.
        fs::write(&database, &older).unwrap();
        store.close().await;
        drop(store);
        assert!(fs::read(&database).unwrap() == older && with_suffix(&database, "-wal").exists());
    }

    /// Whatever was copied since the `-wal` began, all of it is still in there.
    #[tokio::test]
    async fn a_copy_that_is_as_old_as_the_wal_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (settings, database) = killed(folder.path()).await;
        let begun = fs::read(&database).unwrap();
        let store = Store::open(&settings).await.unwrap();
        store.connections.writer().execute("PRAGMA wal_checkpoint(PASSIVE)").await.unwrap();
        let left = folder.path().join("again");
        fs::create_dir(&left).unwrap();
        let settings = test_settings(&left);
        let again = settings.database.file().unwrap().to_owned();
        fs::copy(with_suffix(&database, "-wal"), with_suffix(&again, "-wal")).unwrap();
        fs::write(&again, begun).unwrap();
        let taken = Store::open(&settings).await.unwrap();
        assert_eq!(taken.revocations_after(0).await.unwrap().len(), 3);
        taken.close().await;
        store.close().await;
    }

    fn flip(file: &Path, at: u64) {
        let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }

    /// As after a power failure: the index is from before the present `-wal`.
    #[tokio::test]
    async fn a_wal_that_is_newer_than_its_index_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (settings, database) = killed(folder.path()).await;
        let index = with_suffix(&database, "-shm");
        let old = fs::read(&index).unwrap();
        fs::create_dir(folder.path().join("newer")).unwrap();
        let newer = folder.path().join("newer").join(database.file_name().unwrap());
        let store = Store::open(&settings).await.unwrap();
        let mut other =
            sqlx::AnyConnection::connect(&format!("sqlite://{}", url(&database))).await.unwrap();
        other.execute("PRAGMA wal_checkpoint(RESTART)").await.unwrap();
        other.execute("UPDATE facts SET value = value").await.unwrap();
        for suffix in ["", "-wal"] {
            fs::copy(with_suffix(&database, suffix), with_suffix(&newer, suffix)).unwrap();
        }
        fs::write(with_suffix(&newer, "-shm"), old).unwrap();
        check(&newer).unwrap();
        other.close().await.unwrap();
        store.close().await;
    }

    fn url(path: &Path) -> String {
        path.to_str().unwrap().replace(' ', "%20").replace("b%.db", "b%25.db")
    }
}
