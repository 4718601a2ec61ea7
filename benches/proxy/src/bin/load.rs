//! `load ADDRESS --targets FILE --tokens FILE [options]`: N keep-alive connections with one request in flight on each. Request n asks for
//! target n with token n, both lists going round. Prints one line of JSON. Whatever is not a whole answer with the expected status is an
//! error.
//!
//! `--connections N` (32), `--seconds S` (2), `--requests R` at most, `--offset K` where the tokens begin, `--expect STATUS` (200),
//! `--upload BYTES` sends each request with a body of so many, `--anew 1` makes a connection for each request, `--rate R` makes R requests
//! a second in place of as many as are answered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bench_proxy::{Arguments, HEAD_LIMIT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const FIELDS: &str = "Host: app.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) bench-proxy\r\nAccept: application/json\r\n\
    Accept-Language: en-GB,en;q=0.8\r\nAccept-Encoding: gzip, br\r\nAuthorization: Bearer ";

#[derive(Debug)]
struct Plan {
    address: SocketAddr,
    targets: Vec<String>,
    tokens: Vec<String>,
    seconds: f64,
    next: AtomicUsize,
    /// The number of the first request that is not made.
    end: usize,
    expect: u16,
    /// The body of each request; empty: it is a GET.
    upload: Vec<u8>,
    anew: bool,
    /// Requests a second, in all; infinite: as many as are answered.
    rate: f64,
}

#[derive(Debug, Default)]
struct Tally {
    requests: u64,
    errors: u64,
    bytes: u64,
    first_error: Option<String>,
    latencies: Histogram,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::read()?;
    let connections: usize = arguments.number("connections", 32)?;
    let offset: usize = arguments.number("offset", 0)?;
    let plan = Arc::new(Plan {
        address: arguments.address(0)?,
        targets: arguments.lines("targets")?,
        tokens: arguments.lines("tokens")?,
        seconds: arguments.number("seconds", 2.0)?,
        next: AtomicUsize::new(offset),
        end: offset.saturating_add(arguments.number("requests", usize::MAX)?),
        expect: arguments.number("expect", 200)?,
        upload: vec![b'x'; arguments.number("upload", 0)?],
        anew: arguments.number("anew", 0_u8)? != 0,
        rate: arguments.number("rate", f64::INFINITY)?,
    });
    bench_proxy::on_one_thread(async move {
        let mut streams = Vec::new();
        for _ in 0..connections {
            let stream = TcpStream::connect(plan.address).await?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        let (begun, before) = (Instant::now(), cpu_seconds()?);
        let deadline = begun + Duration::from_secs_f64(plan.seconds);
        let mut running = JoinSet::new();
        for stream in streams {
            running.spawn(drive(Arc::clone(&plan), stream, begun, offset, deadline));
        }
        let mut total = Tally::default();
        while let Some(tally) = running.join_next().await {
            total.add(tally.map_err(io::Error::other)?);
        }
        let (elapsed, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds()? - before);
        report(&total, elapsed, cpu, plan.next.load(Ordering::Relaxed));
        Ok(())
    })
}

fn report(total: &Tally, elapsed: f64, cpu: f64, next: usize) {
    println!(
        "{{\"requests\": {}, \"errors\": {}, \"first_error\": {:?}, \"bytes\": {}, \"seconds\": {elapsed:.6}, \"cpu_seconds\": {cpu:.6}, \
         \"p50_us\": {}, \"p99_us\": {}, \"max_us\": {}, \"next\": {next}}}",
        total.requests,
        total.errors,
        total.first_error.as_deref().unwrap_or(""),
        total.bytes,
        total.latencies.quantile(0.50),
        total.latencies.quantile(0.99),
        total.latencies.quantile(1.0),
    );
}

/// One connection until the deadline; an error ends it, and the next request begins a new one.
async fn drive(plan: Arc<Plan>, mut stream: TcpStream, begun: Instant, offset: usize, deadline: Instant) -> Tally {
    let mut tally = Tally::default();
    let (mut output, mut input) = (Vec::with_capacity(4096), Vec::with_capacity(16 * 1024));
    loop {
        if Instant::now() >= deadline {
            return tally;
        }
        let Some(number) = write_request(&plan, &mut output) else { return tally };
        if plan.rate.is_finite() {
            let due = begun + Duration::from_secs_f64((number - offset) as f64 / plan.rate);
            if due >= deadline {
                return tally;
            }
            tokio::time::sleep_until(due.into()).await;
        }
        let sent = Instant::now();
        if plan.anew {
            match TcpStream::connect(plan.address).await {
                Ok(fresh) => stream = fresh,
                Err(_) => return tally,
            }
        }
        let left = deadline.saturating_duration_since(sent) + Duration::from_secs(5);
        let outcome = match tokio::time::timeout(left, exchange(&plan, &mut stream, &output, &mut input)).await {
            Ok(outcome) => outcome,
            Err(_) => Err("no answer within the round and five seconds".to_owned()),
        };
        match outcome {
            Ok(bytes) => {
                tally.requests += 1;
                tally.bytes += bytes as u64;
                tally.latencies.add(sent.elapsed());
            }
            Err(what) => {
                tally.errors += 1;
                tally.first_error.get_or_insert(what);
                input.clear();
                match TcpStream::connect(plan.address).await {
                    Ok(fresh) => stream = fresh,
                    Err(_) => return tally,
                }
            }
        }
    }
}

/// The next request, and its number; `None` when there is none left.
fn write_request(plan: &Plan, output: &mut Vec<u8>) -> Option<usize> {
    let number = plan.next.fetch_add(1, Ordering::Relaxed);
    if number >= plan.end {
        return None;
    }
    output.clear();
    output.extend_from_slice(if plan.upload.is_empty() { b"GET " } else { b"POST " });
    output.extend_from_slice(plan.targets[number % plan.targets.len()].as_bytes());
    output.extend_from_slice(b" HTTP/1.1\r\n");
    output.extend_from_slice(FIELDS.as_bytes());
    output.extend_from_slice(plan.tokens[number % plan.tokens.len()].as_bytes());
    if !plan.upload.is_empty() {
        output.extend_from_slice(format!("\r\nContent-Length: {}", plan.upload.len()).as_bytes());
    }
    output.extend_from_slice(if plan.anew { b"\r\nConnection: close\r\n\r\n" } else { b"\r\n\r\n" });
    output.extend_from_slice(&plan.upload);
    Some(number)
}

async fn exchange(plan: &Plan, stream: &mut TcpStream, request: &[u8], input: &mut Vec<u8>) -> Result<usize, String> {
    stream.write_all(request).await.map_err(|error| error.to_string())?;
    let length = loop {
        if let Some(length) = whole_answer(input, plan.expect)? {
            break length;
        }
        if stream.read_buf(input).await.map_err(|error| error.to_string())? == 0 {
            return Err("closed before the answer".to_owned());
        }
    };
    // The rest of a long body: nothing is kept of it.
    let mut received = input.len();
    while received < length {
        input.clear();
        let read = stream.read_buf(input).await.map_err(|error| error.to_string())?;
        if read == 0 {
            return Err("closed within the body".to_owned());
        }
        received += read;
    }
    input.clear();
    if received == length { Ok(length) } else { Err("more than the answer".to_owned()) }
}

/// How long the answer is, head and body, once its head is there.
fn whole_answer(input: &[u8], expect: u16) -> Result<Option<usize>, String> {
    if input.is_empty() {
        return Ok(None);
    }
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head) = response.parse(input).map_err(|error| error.to_string())? else {
        return if input.len() > HEAD_LIMIT { Err("an endless head".to_owned()) } else { Ok(None) };
    };
    if response.code != Some(expect) {
        return Err(format!("status {}", response.code.unwrap_or_default()));
    }
    let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
    length.map(|body| Some(head + body)).ok_or_else(|| "an answer without Content-Length".to_owned())
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.bytes += other.bytes;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies.merge(&other.latencies);
    }
}

/// Microseconds in buckets of 1/32 of their power of two: within 3 %.
#[derive(Debug)]
struct Histogram {
    counts: Vec<u64>,
}

const STEPS: u64 = 32;

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; 2048] }
    }
}

impl Histogram {
    fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.counts[Self::bucket(micros)] += 1;
    }

    fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
    }

    fn bucket(micros: u64) -> usize {
        if micros < STEPS {
            return micros as usize;
        }
        let power = u64::from(micros.ilog2() - STEPS.ilog2());
        (STEPS * power + (micros >> power)) as usize
    }

    /// The lower end of a bucket.
    fn value(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < 2 * STEPS {
            return bucket;
        }
        let power = bucket / STEPS - 1;
        (bucket - STEPS * power) << power
    }

    fn quantile(&self, share: f64) -> u64 {
        let total: u64 = self.counts.iter().sum();
        let mut left = (total as f64 * share).ceil();
        for (bucket, count) in self.counts.iter().enumerate() {
            left -= *count as f64;
            if *count > 0 && left <= 0.0 {
                return Self::value(bucket);
            }
        }
        0
    }
}

/// What this one thread has used, in the kernel's own nanoseconds.
fn cpu_seconds() -> io::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanos: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(nanos / 1e9)
}

#[cfg(test)]
mod tests {
    use super::Histogram;

    #[test]
    fn a_bucket_is_within_three_percent_of_what_it_holds() {
        for micros in (0..2000).chain([65_535, 65_536, 1_000_003, 59_999_999]) {
            let value = Histogram::value(Histogram::bucket(micros));
            assert!(value <= micros && micros - value <= micros / 32, "{micros} is counted as {value}");
        }
    }
}
