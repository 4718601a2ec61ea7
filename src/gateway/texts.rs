//! Values of header fields that are written for one exchange.

use std::cell::RefCell;
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use http::HeaderValue;

use crate::telemetry::write_address;

thread_local! {
    /// The block of memory in which a worker writes next. Several texts share it, which costs less
    /// than one block for each; it is free once the last of them has ended.
    static BLOCK: RefCell<BytesMut> = RefCell::default();
}

/// The size of a block, in bytes: about ten exchanges.
const SIZE: usize = 1024;

/// The length of eight groups of four digits.
const LONGEST_ADDRESS: usize = 39;

/// A text of these parts, for as long as one exchange: a text that lives longer would keep the
/// others in memory.
pub(super) fn short_lived(parts: &[&[u8]]) -> Bytes {
    let length = parts.iter().map(|part| part.len()).sum();
    BLOCK.with_borrow_mut(|block| {
        if block.capacity() < length {
            *block = BytesMut::with_capacity(SIZE.max(length));
        }
        for part in parts {
            block.extend_from_slice(part);
        }
        block.split().freeze()
    })
}

/// The address as the value of a field, for as long as one exchange.
pub(super) fn short_lived_address(address: IpAddr) -> HeaderValue {
    value(short_lived(&[&written(address)]))
}

/// The address as the value of a field, in memory of its own.
pub(super) fn address(address: IpAddr) -> HeaderValue {
    value(written(address).into())
}

/// The value of a field, which contains only letters, digits, and the punctuation of addresses.
pub(super) fn value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or(HeaderValue::from_static(""))
}

fn written(address: IpAddr) -> Vec<u8> {
    let mut text = Vec::with_capacity(LONGEST_ADDRESS);
    write_address(&mut text, address);
    text
}
