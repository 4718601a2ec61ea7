//! The length of a message has exactly one meaning: ambiguous framing is rejected, since the next
//! hop could read it differently (RFC 9112 §6).

use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};

use super::body::Body;

/// Why the length of a message is not clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingFault {
    /// Two lengths, even if equal.
    #[error("there is more than one Content-Length")]
    Lengths,
    /// A transfer coding that we do not decode: forwarded as plain chunks, the content would be
    /// undeclared.
    #[error("its Transfer-Encoding is not just `chunked`")]
    Coding,
    /// A value on HTTP/2 that HTTP/1.1 cannot carry as it is (RFC 9113 §8.2.1).
    #[error("the value of a field begins or ends with a space")]
    Padded,
}

/// Checks that the length of a request is unambiguous. hyper does so on HTTP/1.1, except for
/// codings other than `chunked`.
pub fn check_request(version: Version, headers: &HeaderMap) -> Result<(), FramingFault> {
    // On HTTP/1.1 they are not part of the value.
    let is_padded = |value: &HeaderValue| {
        let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        blank(value.as_bytes().first()) || blank(value.as_bytes().last())
    };
    if version == Version::HTTP_2 && headers.values().any(is_padded) {
        return Err(FramingFault::Padded);
    }
    if repeats_length(headers) {
        return Err(FramingFault::Lengths);
    }
    if is_chunked(headers) { Ok(()) } else { Err(FramingFault::Coding) }
}

/// Checks that the length of a response is unambiguous, and merges a repeated length into one (RFC
/// 9110 §8.6).
///
/// hyper has read the body by this length, so repeated values are equal. Without a body to read, it
/// may be anything, and is then removed. `has_coding`: whether it has a `Transfer-Encoding`.
///
/// # Errors
/// [`FramingFault::Coding`] if the body has a transfer coding other than `chunked`. The gateway
/// requests none.
pub fn settle_response(
    status: StatusCode,
    headers: &mut HeaderMap,
    has_coding: bool,
) -> Result<(), FramingFault> {
    if has_coding {
        if !is_chunked(headers) {
            // A field from before RFC 7230, where it meant no coding: hyper then reads to the end
            // of the connection, whatever the declared length.
            let is_identity = headers
                .get_all(header::TRANSFER_ENCODING)
                .iter()
                .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
            if !is_identity || headers.contains_key(header::CONTENT_LENGTH) {
                return Err(FramingFault::Coding);
            }
        }
        // The length that was not used to read the body must not be used downstream either (RFC
        // 9112 §6.3).
        headers.remove(header::CONTENT_LENGTH);
        return Ok(());
    }
    if status == StatusCode::NO_CONTENT {
        // Not allowed here (RFC 9110 §8.6).
        headers.remove(header::CONTENT_LENGTH);
    }
    // Most responses have so few fields that looking one up costs more.
    let length = headers.iter().find(|(name, _)| **name == header::CONTENT_LENGTH);
    let Some(length) = length.map(|(_, value)| value.as_bytes()) else { return Ok(()) };
    if repeats_length(headers)
        || !(1..=DIGITS).contains(&length.len())
        || !length.iter().all(u8::is_ascii_digit)
    {
        let first = length.split(|&byte| byte == b',').next().unwrap_or_default().trim_ascii();
        let number = std::str::from_utf8(first)
            .ok()
            .filter(|first| !first.starts_with('+'))
            .and_then(|first| first.parse::<u64>().ok());
        match number {
            Some(number) => headers.insert(header::CONTENT_LENGTH, HeaderValue::from(number)),
            None => headers.remove(header::CONTENT_LENGTH),
        };
    }
    Ok(())
}

/// Any number with this many digits fits in 64 bits.
const DIGITS: usize = 19;

/// A response of our own to HEAD: hyper omits the body on HTTP/1.1 only.
pub fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Body::Bytes(bytes) = response.body() {
        let length = HeaderValue::from(bytes.len());
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length);
        *response.body_mut() = Body::Empty;
    }
    response
}

/// Whether a response with this status has no body, whatever its fields say (RFC 9112 §6.3).
pub fn is_without_content(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Whether bytes may follow this response that would be read as the next one: a body where none is
/// allowed, or one of two lengths. `has_coding`: whether it has a `Transfer-Encoding`.
pub fn may_have_extra_bytes<B>(response: &Response<B>, is_head: bool, has_coding: bool) -> bool {
    let length = || response.headers().get(header::CONTENT_LENGTH);
    match response.status() {
        // In response to a GET, one without a length would have a body.
        _ if is_head => has_coding || length().is_none_or(|length| length != "0"),
        status if is_without_content(status) => {
            has_coding || length().is_some_and(|length| length != "0")
        }
        _ => has_coding && length().is_some(),
    }
}

/// Whether a length is repeated. Most messages repeat no field at all, which the map knows without
/// a lookup.
fn repeats_length(headers: &HeaderMap) -> bool {
    headers.len() != headers.keys_len()
        && headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some()
}

/// Whether the only coding is a single `chunked`, or there is none.
fn is_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    codings
        .next()
        .is_none_or(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_with_bytes_to_come_is_not_reused() {
        let may_have = |status: u16, length: Option<&'static str>, is_head, has_coding| {
            let response = Response::builder().status(status);
            let response = match length {
                Some(length) => response.header(header::CONTENT_LENGTH, length),
                None => response,
            };
            may_have_extra_bytes(&response.body(()).unwrap(), is_head, has_coding)
        };
        for (status, length, is_head, has_coding, expected) in [
            (200, Some("2"), false, false, false),
            (200, None, false, true, false),
            (200, Some("2"), false, true, true),
            (200, Some("0"), true, false, false),
            (200, Some("2"), true, false, true),
            (200, None, true, false, true),
            (204, None, false, false, false),
            (304, Some("2"), false, false, true),
        ] {
            let found = may_have(status, length, is_head, has_coding);
            assert_eq!(found, expected, "{status} {length:?} {is_head} {has_coding}");
        }
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
            .fold(HeaderMap::new(), |mut headers, (name, value): (http::HeaderName, _)| {
                headers.append(name, value);
                headers
            })
    }

    #[test]
    fn a_request_has_one_length_or_is_chunked() {
        for (fields, expected) in [
            (&[][..], Ok(())),
            (&[("content-length", "3"), ("a", "1"), ("a", "2")], Ok(())),
            (&[("transfer-encoding", " Chunked")], Ok(())),
            (&[("content-length", "3"), ("content-length", "3")], Err(FramingFault::Lengths)),
            (&[("content-length", "3"), ("content-length", "03")], Err(FramingFault::Lengths)),
            (&[("transfer-encoding", "gzip, chunked")], Err(FramingFault::Coding)),
            (
                &[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")],
                Err(FramingFault::Coding),
            ),
            (&[("transfer-encoding", "identity")], Err(FramingFault::Coding)),
            (&[("transfer-encoding", "")], Err(FramingFault::Coding)),
        ] {
            assert_eq!(check_request(Version::HTTP_11, &headers(fields)), expected, "{fields:?}");
        }
    }

    fn settled(status: StatusCode, headers: &mut HeaderMap) -> Result<(), FramingFault> {
        let has_coding = headers.contains_key(header::TRANSFER_ENCODING);
        settle_response(status, headers, has_coding)
    }

    #[test]
    fn a_response_gets_one_length() {
        for (fields, expected) in [
            (&[][..], None),
            (&[("content-length", "12")], Some("12")),
            (&[("content-length", "3"), ("content-length", "03")], Some("3")),
            (&[("content-length", "3, 3")], Some("3")),
            (&[("content-length", "03 ,3"), ("x", "y")], Some("3")),
            (&[("content-length", "+3")], None),
            (&[("content-length", "")], None),
            (&[("content-length", "three")], None),
            (&[("content-length", "99999999999999999999999")], None),
        ] {
            let mut headers = headers(fields);
            assert_eq!(settled(StatusCode::OK, &mut headers), Ok(()), "{fields:?}");
            let lengths: Vec<_> = headers
                .get_all("content-length")
                .iter()
                .map(|value| value.to_str().unwrap())
                .collect();
            assert_eq!(lengths, Vec::from_iter(expected), "{fields:?}");
        }
        for (coding, expected) in [
            ("chunked", Ok(())),
            ("identity", Ok(())),
            ("gzip, chunked", Err(FramingFault::Coding)),
            ("gzip", Err(FramingFault::Coding)),
        ] {
            assert_eq!(
                settled(StatusCode::OK, &mut headers(&[("transfer-encoding", coding)])),
                expected,
                "{coding}"
            );
        }
        let mut both = headers(&[("transfer-encoding", "identity"), ("content-length", "5")]);
        assert_eq!(settled(StatusCode::OK, &mut both), Err(FramingFault::Coding));
        let mut chunks = headers(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        assert_eq!((settled(StatusCode::OK, &mut chunks), chunks.len()), (Ok(()), 1));
        let mut none = headers(&[("content-length", "5"), ("x", "1")]);
        assert_eq!((settled(StatusCode::NO_CONTENT, &mut none), none.len()), (Ok(()), 1));
    }
}
