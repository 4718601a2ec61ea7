//! `load ADDRESS --targets FILE --tokens FILE [options]`: keeps N connections with one request in
//! flight on each, or on each stream of each. Request n uses target n and token n; both lists
//! repeat, and an empty line means no token. Prints one line of JSON. Anything but a complete
//! response with the expected status counts as an error.
//!
//! `--connections N` (default 32), `--seconds S` (2), `--requests R`: stop after R requests,
//! `--offset K`: the index of the first token, `--expect STATUS` (200; 0: any), `--upload BYTES`:
//! send a body of this length with each request, `--anew 1`: open a connection for each request,
//! `--rate R`: send R requests per second instead of as many as possible.
//!
//! `--tls FILE`: use TLS 1.3 and trust the authority in this file, `--protocol h2` (with `--tls`):
//! use HTTP/2 with `--streams S` (1) on each connection, `--fields N`: send N header fields in all,
//! `--field 'NAME: VALUE'`: send this field too.
//!
//! `--warm 1`: send a request on each lane before the measurement begins. `--watch PID`: report the
//! CPU time of each thread of that process during the measurement.
//!
//! `--hold N`: open N connections, send one request on each, print a line, keep the connections
//! until standard input ends, and then print how many are still open.

mod connect;
mod histogram;
mod lane;
mod watch;

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bench_proxy::Arguments;
use bytes::Bytes;
use hyper::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use connect::Connector;
use histogram::Histogram;
use lane::{Answer, Lane};
use watch::Usage;

const HOST: &str = "app.example.com";
const FIELDS: [(&str, &str); 5] = [
    ("Host", HOST),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) bench-proxy"),
    ("Accept", "application/json"),
    ("Accept-Language", "en-GB,en;q=0.8"),
    ("Accept-Encoding", "gzip, br"),
];
/// The number of held connections from one address of this machine.
const PORTS: usize = 8_000;
/// The number of connections that are opened at the same time.
const OPENING: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    H1,
    H2,
}

struct Plan {
    connector: Connector,
    protocol: Protocol,
    streams: usize,
    /// The tasks that drive HTTP/2 connections.
    connections: Mutex<JoinSet<hyper::Result<()>>>,
    targets: Vec<String>,
    tokens: Vec<String>,
    /// Every field except the one with the token.
    fields: Vec<(String, String)>,
    map: HeaderMap,
    seconds: f64,
    next: AtomicUsize,
    /// The number of the first request that is not sent.
    end: usize,
    /// 0: any status.
    expect: u16,
    status: AtomicU16,
    /// The body of each request. If it is empty, the method is GET.
    upload: Bytes,
    anew: bool,
    warm: bool,
    /// Requests per second in total; infinite: as many as possible.
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
    let plan = Arc::new(Plan::read(&arguments)?);
    let watched = arguments.text("watch").map(|_| arguments.number("watch", 0)).transpose()?;
    let connections = arguments.number("connections", 32)?;
    match arguments.number("hold", 0)? {
        0 => bench_proxy::on_one_thread(measure(plan, connections, watched)),
        held => bench_proxy::on_one_thread(hold(plan, held)),
    }
}

async fn measure(plan: Arc<Plan>, connections: usize, watched: Option<u32>) -> io::Result<()> {
    let mut lanes = Vec::new();
    for _ in 0..connections {
        lanes.extend(Lane::open(&plan).await.map_err(io::Error::other)?);
    }
    if plan.warm {
        lanes = warmed(&plan, lanes).await?;
    }
    let first = plan.next.load(Ordering::Relaxed);
    let (used, begun, before) = (Usage::read(watched)?, Instant::now(), watch::own_seconds()?);
    let deadline = begun + Duration::from_secs_f64(plan.seconds);
    let mut running = JoinSet::new();
    for lane in lanes {
        running.spawn(drive(Arc::clone(&plan), lane, first, begun, deadline));
    }
    let mut total = Tally::default();
    while let Some(tally) = running.join_next().await {
        total.add(tally.map_err(io::Error::other)?);
    }
    let (elapsed, cpu) = (begun.elapsed().as_secs_f64(), watch::own_seconds()? - before);
    report(&plan, &total, elapsed, cpu, &Usage::read(watched)?.since(&used));
    Ok(())
}

/// The lanes, after a first request on each, so that the cost of connecting is not measured.
async fn warmed(plan: &Arc<Plan>, lanes: Vec<Lane>) -> io::Result<Vec<Lane>> {
    let mut running = JoinSet::new();
    for mut lane in lanes {
        let plan = Arc::clone(plan);
        running.spawn(async move {
            if let Some(number) = plan.number() {
                lane.prepare(&plan, number);
                plan.expected(&lane.exchange().await?)?;
            }
            Ok::<_, String>(lane)
        });
    }
    let mut warm = Vec::new();
    while let Some(lane) = running.join_next().await {
        warm.push(lane.map_err(io::Error::other)?.map_err(io::Error::other)?);
    }
    Ok(warm)
}

fn report(plan: &Plan, total: &Tally, elapsed: f64, cpu: f64, threads: &str) {
    println!(
        "{{\"requests\": {}, \"errors\": {}, \"first_error\": {:?}, \"bytes\": {}, \"seconds\": {elapsed:.6}, \"cpu_seconds\": {cpu:.6}, \
         \"p50_us\": {}, \"p99_us\": {}, \"max_us\": {}, \"next\": {}, \"status\": {}, \"agreed\": {:?}, \"threads\": {threads}}}",
        total.requests,
        total.errors,
        total.first_error.as_deref().unwrap_or(""),
        total.bytes,
        total.latencies.quantile(0.50),
        total.latencies.quantile(0.99),
        total.latencies.quantile(1.0),
        plan.next.load(Ordering::Relaxed),
        plan.status.load(Ordering::Relaxed),
        plan.connector.agreed(),
    );
}

/// Runs one lane until the deadline. An error ends its connection, and the next request opens a new
/// one.
async fn drive(plan: Arc<Plan>, mut lane: Lane, first: usize, begun: Instant, deadline: Instant) -> Tally {
    let mut tally = Tally::default();
    loop {
        if Instant::now() >= deadline {
            return tally;
        }
        let Some(number) = plan.number() else { return tally };
        lane.prepare(&plan, number);
        if plan.rate.is_finite() {
            let due = begun + Duration::from_secs_f64((number - first) as f64 / plan.rate);
            if due >= deadline {
                return tally;
            }
            tokio::time::sleep_until(due.into()).await;
        }
        let sent = Instant::now();
        if plan.anew {
            match fresh(&plan).await {
                Ok(opened) => lane = opened,
                Err(what) => return tally.failed(what),
            }
            lane.prepare(&plan, number);
        }
        let left = deadline.saturating_duration_since(sent) + Duration::from_secs(5);
        let outcome = match tokio::time::timeout(left, lane.exchange()).await {
            Ok(outcome) => outcome.and_then(|answer| plan.expected(&answer)),
            Err(_) => Err("no answer within the round and five seconds".to_owned()),
        };
        match outcome {
            Ok(bytes) => {
                tally.requests += 1;
                tally.bytes += bytes as u64;
                tally.latencies.add(sent.elapsed());
            }
            Err(what) => {
                tally = tally.failed(what);
                match fresh(&plan).await {
                    Ok(opened) => lane = opened,
                    Err(what) => return tally.failed(what),
                }
            }
        }
    }
}

async fn fresh(plan: &Plan) -> Result<Lane, String> {
    Lane::open(plan).await?.pop().ok_or_else(|| "a connection without streams".to_owned())
}

impl Plan {
    fn read(arguments: &Arguments) -> io::Result<Self> {
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let protocol = match arguments.text("protocol") {
            None | Some("h1") => Protocol::H1,
            Some("h2") => Protocol::H2,
            Some(_) => return Err(wrong("--protocol: h1 or h2")),
        };
        let authority = arguments.text("tls");
        if protocol == Protocol::H2 && authority.is_none() {
            return Err(wrong("--protocol h2 needs --tls"));
        }
        let mut fields = fields(arguments.number("fields", FIELDS.len() + 1)?);
        if let Some((name, value)) = arguments.text("field").and_then(|text| text.split_once(": ")) {
            fields.push((name.to_owned(), value.to_owned()));
        }
        let offset: usize = arguments.number("offset", 0)?;
        let plan = Self {
            connector: Connector::new(arguments.address(0)?, authority, protocol)?,
            protocol,
            streams: arguments.number("streams", 1)?,
            connections: Mutex::default(),
            targets: arguments.lines("targets")?,
            tokens: arguments.lines("tokens")?,
            map: lane::map(&fields).ok_or_else(|| wrong("an invalid field"))?,
            fields,
            seconds: arguments.number("seconds", 2.0)?,
            next: AtomicUsize::new(offset),
            end: offset.saturating_add(arguments.number("requests", usize::MAX)?),
            expect: arguments.number("expect", 200)?,
            status: AtomicU16::new(0),
            upload: vec![b'x'; arguments.number("upload", 0)?].into(),
            anew: arguments.number("anew", 0_u8)? != 0,
            warm: arguments.number("warm", 0_u8)? != 0,
            rate: arguments.number("rate", f64::INFINITY)?,
        };
        lane::request(&plan, offset).ok_or_else(|| wrong("an invalid target or token"))?;
        Ok(plan)
    }

    /// The number of the next request; `None` after the last one.
    fn number(&self) -> Option<usize> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.end).then_some(number)
    }

    fn target(&self, number: usize) -> &str {
        &self.targets[number % self.targets.len()]
    }

    fn token(&self, number: usize) -> &str {
        &self.tokens[number % self.tokens.len()]
    }

    fn expected(&self, answer: &Answer) -> Result<usize, String> {
        self.status.store(answer.status, Ordering::Relaxed);
        match self.expect {
            0 => Ok(answer.bytes),
            status if status == answer.status => Ok(answer.bytes),
            _ => Err(format!("status {}", answer.status)),
        }
    }
}

/// This many fields, including the one with the token: those of a browser first, then others.
fn fields(count: usize) -> Vec<(String, String)> {
    let usual = FIELDS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let others = (1..).map(|number| (format!("X-Field-{number:02}"), format!("the value of field {number:02}")));
    usual.chain(others).take(count.saturating_sub(1).max(1)).collect()
}

impl Tally {
    fn failed(mut self, what: String) -> Self {
        self.errors += 1;
        self.first_error.get_or_insert(what);
        self
    }

    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.bytes += other.bytes;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies.merge(&other.latencies);
    }
}

async fn hold(plan: Arc<Plan>, count: usize) -> io::Result<()> {
    let mut opening = JoinSet::new();
    for first in 0..OPENING.min(count) {
        let plan = Arc::clone(&plan);
        opening.spawn(async move {
            let mut opened = Vec::new();
            for index in (first..count).step_by(OPENING) {
                opened.push(used_once(&plan, index).await?);
            }
            io::Result::Ok(opened)
        });
    }
    let mut held = Vec::new();
    while let Some(opened) = opening.join_next().await {
        held.extend(opened.map_err(io::Error::other)??);
    }
    println!("{}", held.len());
    io::stdout().flush()?;
    // Idle connections need no work, so this thread can block.
    io::stdin().read_to_end(&mut Vec::new())?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let idle = |stream: &&TcpStream| matches!(stream.try_read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    println!("{}", held.iter().filter(idle).count());
    Ok(())
}

/// A connection after its request.
async fn used_once(plan: &Plan, index: usize) -> io::Result<TcpStream> {
    let address = u8::try_from(2 + index / PORTS).map_err(io::Error::other)?;
    let mut stream = plan.connector.connect_from(Ipv4Addr::new(127, 0, 0, address)).await?;
    let (mut output, mut input) = (Vec::new(), Vec::new());
    lane::write_request(plan, index, &mut output);
    stream.write_all(&output).await?;
    loop {
        match lane::whole_head(&input).map_err(io::Error::other)? {
            Some((status, length)) if input.len() >= length => {
                plan.expected(&Answer { status, bytes: length }).map_err(io::Error::other)?;
                return Ok(stream);
            }
            _ if stream.read_buf(&mut input).await? == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
}
