//! A target that is accepted has one meaning: no application, however it decodes and resolves, can
//! read another path in it.
//!
//! Input: the method, the target, and then `Host` lines, each on a line of its own.

#![no_main]

use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};
use libfuzzer_sys::fuzz_target;
use portcullis::gateway::target::{Relaxations, Target};

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let Ok(method) = Method::from_bytes(lines.next().unwrap_or_default()) else { return };
    let Ok(uri) = Uri::try_from(lines.next().unwrap_or_default()) else { return };
    let mut headers = HeaderMap::new();
    for host in lines {
        let Ok(host) = HeaderValue::from_bytes(host) else { return };
        headers.append(header::HOST, host);
    }
    let version = if headers.is_empty() { Version::HTTP_2 } else { Version::HTTP_11 };
    let Ok(target) = Target::parse(&method, &uri, version, &headers) else { return };

    let (path, received) = (target.path(), target.received_path());
    assert!(headers.len() <= 1, "two hosts");
    assert!(method != Method::CONNECT && method != Method::TRACE);
    assert_eq!(target.sent().path(), received);
    assert_eq!(received, uri.path_and_query().map_or("/", |sent| sent.path()), "the received bytes are forwarded");

    let host = target.host();
    assert!(!host.is_empty() && !host.contains(['@', '/', '?', '#', ',', ' ', '\\']), "{host:?}");
    assert!(!host.bytes().any(|byte| byte.is_ascii_uppercase()), "{host:?}");

    assert!(path.starts_with('/'), "{path:?}");
    assert!(!path.chars().any(char::is_control), "{path:?}");
    assert!(!path.contains('\\') || target.relaxed().uses(Relaxations::ENCODED_BACKSLASH), "{path:?}");
    assert!(!path.split('/').any(|segment| segment == "." || segment == ".."), "{path:?}");
    let relaxed = target.relaxed();
    assert!(
        decoded(path).is_none_or(|again| again == path.as_bytes()) || relaxed.uses(Relaxations::ENCODED_PERCENT),
        "encoded twice: {path:?}"
    );
    if relaxed == Relaxations::NONE {
        assert!(!path.contains("//") && !path.contains(';'), "{path:?}");
        assert_eq!(decoded(received).as_deref(), Some(path.as_bytes()), "the matched and the forwarded path differ");
    } else {
        // After the relaxations, the path is canonical.
        assert!(!path.contains("//"), "{path:?}");
        // An application that applies the relaxations must not find a dot segment either.
        let lenient = decoded(received).expect("broken escapes are refused");
        let lenient = String::from_utf8(lenient).expect("bytes that are not UTF-8 are refused, also in a parameter");
        assert!(!lenient.chars().any(char::is_control), "{received:?}");
        for segment in lenient.split('/') {
            let segment = segment.split(';').next().unwrap_or_default();
            assert!(segment != "." && segment != "..", "{received:?}");
        }
    }

    for segments in 0..4 {
        for parameter in [None, Some("access_token")] {
            let Ok(sent) = target.rewritten(segments, parameter) else { continue };
            // As hyper writes it: even the absolute form without a path (`http://host?query`) gets
            // one.
            let sent = sent.to_string();
            assert!(sent.starts_with('/') && (segments == 0 || !sent.starts_with("//")), "{sent:?}");
            if let (Some(name), Some((_, query))) = (parameter, sent.split_once('?')) {
                assert!(!query.split('&').any(|pair| pair.split('=').next() == Some(name)), "{query:?}");
            }
        }
    }
});

/// The path, percent-decoded once; `None` if an escape is broken.
fn decoded(path: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digit = |byte: u8| char::from(byte).to_digit(16);
            out.push(u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).ok()?);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}
