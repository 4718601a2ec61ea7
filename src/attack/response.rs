//! Responses as they arrive, one after another on a connection.

/// A response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    /// Names in lower case.
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Response {
    /// The first value of a field.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// How much of what was received is a response.
enum Parsed {
    Whole {
        response: Response,
        length: usize,
    },
    /// More has to arrive; this much is known.
    Part(Option<Response>),
}

/// The responses in what was received, and whether the last one is whole. `has_ended`: nothing
/// more will arrive.
pub(super) fn responses(mut bytes: &[u8], has_ended: bool) -> (Vec<Response>, bool) {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        match parse(bytes, has_ended) {
            Parsed::Whole { response, length } => {
                bytes = &bytes[length..];
                let is_last = response.status == 101;
                // Others between 100 and 199 come before the response itself.
                if is_last || response.status >= 200 {
                    found.push(response);
                }
                if is_last {
                    return (found, true);
                }
            }
            Parsed::Part(part) => {
                found.extend(part);
                return (found, false);
            }
        }
    }
    let is_whole = !found.is_empty();
    (found, is_whole)
}

fn parse(bytes: &[u8], has_ended: bool) -> Parsed {
    let Some(end) = position(bytes, b"\r\n\r\n") else { return Parsed::Part(None) };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    let fields = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response = Response { status, fields, body: Vec::new() };
    let (start, rest) = (end + 4, &bytes[end + 4..]);
    let is_chunked = response
        .field("transfer-encoding")
        .is_some_and(|codings| codings.to_ascii_lowercase().contains("chunked"));
    let announced = response.field("content-length").and_then(|value| value.parse::<usize>().ok());
    let length = if status < 200 || status == 204 || status == 304 {
        Some(0)
    } else if is_chunked {
        let (body, length) = unchunked(rest);
        response.body = body;
        length
    } else if let Some(announced) = announced {
        response.body = rest[..announced.min(rest.len())].to_vec();
        (rest.len() >= announced).then_some(announced)
    } else {
        response.body = rest.to_vec();
        has_ended.then_some(rest.len())
    };
    match length {
        Some(length) => Parsed::Whole { response, length: start + length },
        None => Parsed::Part(Some(response)),
    }
}

/// The content of chunks (RFC 9112 §7.1), and their length if they have an end.
fn unchunked(mut rest: &[u8]) -> (Vec<u8>, Option<usize>) {
    let (mut body, whole) = (Vec::new(), rest.len());
    loop {
        let Some(line) = position(rest, b"\r\n") else { return (body, None) };
        let size = String::from_utf8_lossy(&rest[..line]);
        let size = size.split(';').next().unwrap_or_default().trim();
        let Ok(size) = usize::from_str_radix(size, 16) else { return (body, None) };
        rest = &rest[line + 2..];
        if size == 0 {
            // Trailers end with an empty line.
            let end = if rest.starts_with(b"\r\n") {
                Some(2)
            } else {
                position(rest, b"\r\n\r\n").map(|end| end + 4)
            };
            return (body, end.map(|end| whole - rest.len() + end));
        }
        let Some(chunk) = rest.get(..size) else {
            body.extend_from_slice(rest);
            return (body, None);
        };
        body.extend_from_slice(chunk);
        let Some(after) = rest.get(size + 2..) else { return (body, None) };
        rest = after;
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_end_where_they_say() {
        let of = |text: &str, ended| {
            let (found, whole) = responses(text.as_bytes(), ended);
            let found: Vec<_> = found
                .into_iter()
                .map(|one| (one.status, String::from_utf8(one.body).unwrap()))
                .collect();
            (found, whole)
        };
        let one = |status: u16, body: &str| (status, body.to_owned());
        let two = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: x\r\n\r\n";
        assert_eq!(of(two, false), (vec![one(200, "ok"), one(401, "abcde")], true));
        assert_eq!(of(&two[..50], false), (vec![one(200, "ok")], false));
        assert!(!of(&two[..two.len() - 2], false).1);
        let open = "HTTP/1.0 502 Bad Gateway\r\n\r\nsorry";
        assert_eq!(of(open, false), (vec![one(502, "sorry")], false));
        assert_eq!(of(open, true), (vec![one(502, "sorry")], true));
        let switched = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching\r\n\r\nframes";
        assert_eq!(of(switched, false), (vec![one(101, "")], true));
        assert_eq!(of("", true), (vec![], false));
    }
}
