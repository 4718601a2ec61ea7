//! A PROXY header means the same in every piece in which it arrives, and nothing after it counts.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::server::proxy_protocol::parse;

fuzz_target!(|data: &[u8]| {
    let whole = parse(data);
    for cut in 0..=data.len().min(600) {
        match (parse(&data[..cut]), &whole) {
            // Once there is an answer, more bytes do not change it.
            (Ok(Some(header)), _) => {
                assert!(header.length <= cut);
                assert_eq!(whole, Ok(Some(header)));
            }
            (Err(fault), _) => assert_eq!(whole, Err(fault)),
            (Ok(None), Ok(Some(header))) => assert!(header.length > cut),
            (Ok(None), _) => {}
        }
    }
});
