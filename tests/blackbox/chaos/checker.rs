//! Checks the whole history.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::BUDGET;
use super::clients::REPEATED_FOR;
use super::history::{Entry, Fault, Forgets, What, quantile};
use super::world::World;

/// How often a gateway says that it runs.
const BEAT: Duration = Duration::from_secs(1);

/// What was found.
pub struct Checked {
    pub report: String,
    pub violations: Vec<String>,
}

struct Checker<'h> {
    entries: &'h [Entry],
    faults: &'h [Fault],
    counted_apart: &'h HashSet<String>,
    violations: Vec<String>,
    /// When each access token may have been revoked first, and when that was acknowledged.
    revoked: HashMap<&'h str, (Instant, Option<Instant>)>,
    /// When each session may have ended first, by the refresh token that it had then.
    ended: HashMap<&'h str, Instant>,
    /// How long after its revocation each gateway has accepted a token, while it was connected.
    lags: HashMap<(&'h str, usize), Duration>,
    begun: Instant,
}

impl World {
    /// Checks everything that clients have seen in this many seconds.
    pub fn check(&self, seconds: u64) -> Checked {
        let mut entries = self.history.entries.lock().unwrap();
        entries.sort_by_key(|entry| entry.sent);
        let faults = self.history.faults.lock().unwrap();
        let begun = entries.first().map_or_else(Instant::now, |entry| entry.sent);
        let mut checker = Checker {
            entries: &entries,
            faults: &faults,
            counted_apart: &self.history.counted_apart.lock().unwrap(),
            violations: Vec::new(),
            revoked: HashMap::new(),
            ended: HashMap::new(),
            lags: HashMap::new(),
            begun,
        };
        checker.collect();
        checker.check_access();
        checker.check_sessions();
        checker.check_passwords();
        let limits = checker.check_limits();
        let lags = checker.check_lags(&self.history.beats.lock().unwrap(), seconds);
        let report = format!("{}{limits}{lags}", checker.count());
        Checked { report, violations: checker.violations }
    }
}

impl<'h> Checker<'h> {
    fn violate(&mut self, entry: &Entry, what: impl std::fmt::Display) {
        let at = |time: Instant| time.duration_since(self.begun).as_secs_f64();
        let faults: Vec<_> = self
            .faults
            .iter()
            .filter(|fault| fault.overlaps(entry.sent, entry.answered))
            .map(|fault| fault.what)
            .collect();
        let Entry { gateway, status, what: asked, .. } = entry;
        let (sent, answered) = (at(entry.sent), at(entry.answered));
        let text = format!(
            "{what}: {status:?} from {gateway:?}, sent {sent:.3}, answered {answered:.3}, during {faults:?}: {asked:?}"
        );
        self.violations.push(text);
    }

    fn collect(&mut self) {
        for entry in self.entries {
            let What::Revoke { tokens, ends } = &entry.what else { continue };
            let is_acknowledged = entry.status.is_some_and(|status| status < 300);
            for token in tokens {
                let known = self.revoked.entry(token).or_insert((entry.sent, None));
                if is_acknowledged && known.1.is_none() {
                    known.1 = Some(entry.answered);
                }
            }
            if let Some(ended) = ends {
                self.ended.entry(ended).or_insert(entry.sent);
            }
        }
    }

    /// A token is accepted until it is revoked, whatever is away, and never later than the bound.
    fn check_access(&mut self) {
        for entry in self.entries {
            let (What::Access { token }, Some(gateway), Some(status)) =
                (&entry.what, entry.gateway, entry.status)
            else {
                continue;
            };
            let revoked = self.revoked.get(token.as_str()).copied();
            match (status, revoked) {
                (200, Some((_, Some(acknowledged)))) if entry.sent > acknowledged => {
                    let late = self.connected_for(gateway, acknowledged, entry.sent);
                    if late == Some(entry.sent - acknowledged) {
                        self.lags.insert((token, gateway), entry.sent - acknowledged);
                    }
                    if late.is_some_and(|late| late > bound()) {
                        self.violate(entry, format!("accepted {late:?} after it was revoked"));
                    }
                }
                (200, _) => {}
                (401, Some((sent, _))) if entry.answered >= sent => {
                    if let (_, Some(acknowledged)) = revoked.unwrap_or((sent, None))
                        && self.connected_for(gateway, acknowledged, entry.sent)
                            == Some(entry.sent.saturating_duration_since(acknowledged))
                    {
                        self.lags.entry((token, gateway)).or_default();
                    }
                }
                _ => self.violate(entry, "a valid token is refused"),
            }
        }
    }

    /// Whether each gateway may have granted its part of a limit when it answered.
    fn has_parts(&self, entry: &Entry) -> bool {
        let is_redis = |fault: &&Fault| fault.what.starts_with("Redis");
        self.faults.iter().filter(is_redis).any(|fault| fault.overlaps(entry.sent, entry.answered))
    }

    /// For how long a gateway has been connected at a time, but not from before `since`. `None`: it
    /// is not.
    fn connected_for(&self, gateway: usize, since: Instant, now: Instant) -> Option<Duration> {
        let mut from = since;
        for fault in self.faults.iter().filter(|fault| fault.cuts_off[gateway]) {
            if fault.overlaps(now, now) {
                return None;
            }
            if let Some(until) = fault.until.filter(|&until| until <= now) {
                from = from.max(until);
            }
        }
        Some(now.saturating_duration_since(from))
    }

    /// No refresh token has two successors, and none is refused while it is valid.
    fn check_sessions(&mut self) {
        let mut used: HashMap<&str, (Instant, HashSet<&str>)> = HashMap::new();
        for entry in self.entries {
            let What::Refresh { token, made } = &entry.what else { continue };
            let (first, successors) =
                used.entry(token).or_insert_with(|| (entry.sent, HashSet::new()));
            successors.extend(made.as_ref().map(|made| made.refresh.as_str()));
            let (count, first) = (successors.len(), *first);
            if count > 1 {
                self.violate(entry, "two tokens succeed one");
            }
            let may_be_refused =
                self.ended.get(token.as_str()).is_some_and(|&at| at <= entry.answered)
                    || entry.answered - first > REPEATED_FOR;
            if !matches!(entry.status, None | Some(200 | 503)) && !may_be_refused {
                self.violate(entry, "a session has ended by itself");
            }
        }
    }

    /// The acknowledged password of an acknowledged account is accepted, and no other.
    fn check_passwords(&mut self) {
        // Each account is used by one client, which waits for each answer.
        let mut valid: HashMap<&str, Vec<&str>> = HashMap::new();
        for entry in self.entries {
            match (&entry.what, entry.status) {
                (What::Register { email, password }, Some(201 | 409))
                | (What::Change { email, password }, Some(204)) => {
                    valid.insert(email, vec![password]);
                }
                (What::Change { email, password }, None | Some(503)) => {
                    valid.entry(email).or_default().push(password);
                }
                (What::Login { email, password }, Some(200)) => {
                    let known = valid.insert(email, vec![password]);
                    if !known.is_some_and(|known| known.contains(&password.as_str())) {
                        self.violate(entry, "an earlier password is accepted");
                    }
                }
                (What::Login { email, password }, Some(401)) => {
                    let known = valid.entry(email).or_default();
                    known.retain(|known| known != password);
                    if known.is_empty() {
                        self.violate(entry, "an acknowledged account or password is lost");
                    }
                }
                // The limit on failures of an account counts attempts that were not answered.
                (What::Register { .. }, None | Some(503))
                | (What::Login { .. }, None | Some(429 | 503)) => {}
                (What::Change { .. } | What::Revoke { .. }, Some(429)) if self.has_parts(entry) => {
                }
                (What::Register { .. } | What::Login { .. } | What::Change { .. }, _) => {
                    self.violate(entry, "an unexpected answer");
                }
                (What::Revoke { ends: Some(_), .. }, status)
                    if !matches!(status, None | Some(200..300 | 503)) =>
                {
                    self.violate(entry, "a logout is refused");
                }
                _ => {}
            }
        }
    }

    /// Nobody gets more than the budget, but for the gateways' parts while Redis is away and for
    /// counters that are lost.
    fn check_limits(&mut self) -> String {
        let mut rounds: HashMap<&str, Vec<&'h Entry>> = HashMap::new();
        for entry in self.entries {
            if let What::Limited { client } = &entry.what {
                rounds.entry(client).or_default().push(entry);
            }
        }
        let (mut calm, mut most) = (0, 0);
        for (client, round) in &rounds {
            let passed = round.iter().filter(|entry| entry.status == Some(200)).count();
            let (from, until) = (round[0].sent, round.iter().map(|entry| entry.answered).max());
            let until = until.unwrap_or(from);
            let faults: Vec<_> =
                self.faults.iter().filter(|fault| fault.overlaps(from, until)).collect();
            let is_answered = |entry: &&&Entry| matches!(entry.status, Some(200 | 429) | None);
            if let Some(entry) = round.iter().find(|entry| !is_answered(entry)) {
                self.violate(entry, "a limit answers something else");
            }
            let is_calm = faults.is_empty() && !self.counted_apart.contains(*client);
            let allowed = if is_calm {
                calm += 1;
                BUDGET
            } else {
                let lost = |what, from| {
                    let faults = self.faults.iter().filter(|fault| fault.forgets == Some(what));
                    faults.filter(|fault| fault.overlaps(from, until)).count()
                };
                // The others learn within a beat that a gateway is back. Until then their parts are
                // larger.
                let earlier = from.checked_sub(2 * BEAT).unwrap_or(from);
                let parts = 3 + lost(Forgets::Gateway, earlier);
                BUDGET * (1 + lost(Forgets::Redis, from)) + parts * BUDGET / 3
            };
            most = most.max(passed);
            if passed > allowed || (is_calm && passed < BUDGET) {
                let what = format!("{passed} requests passed of {allowed}");
                self.violate(round[0], what);
            }
        }
        let rounds = rounds.len();
        format!(
            "limits: {rounds} clients, {calm} of them undisturbed with exactly {BUDGET} requests each, at most {most} otherwise\n"
        )
    }

    fn check_lags(&mut self, beats: &[(f64, f64)], seconds: u64) -> String {
        let mut lags: Vec<_> = self.lags.values().copied().collect();
        let (seen, p50) = (lags.len(), quantile(&mut lags, 0.5));
        let (p99, worst) = (quantile(&mut lags, 0.99), quantile(&mut lags, 1.0));
        let all = beats.last().map_or(0.0, |(_, count)| *count);
        let within = |part: f64| {
            beats.iter().find(|(_, count)| *count >= all * part).map(|(bound, _)| *bound)
        };
        let (beat_p99, beat_worst) = (within(0.99), within(1.0));
        if is_release() && seconds >= 60 {
            let is_met = p99 <= Duration::from_millis(100)
                && beat_p99.is_some_and(|bound| bound <= 0.1)
                && beat_worst.is_some_and(|bound| bound <= 1.0);
            if !is_met {
                self.violations.push("revocations take too long".to_owned());
            }
        }
        format!(
            "revocation lag that clients saw while connected: {seen} times, half within {p50:?}, p99 {p99:?}, worst {worst:?}\n\
             heartbeats while nothing was disrupted: {all}, p99 <= {beat_p99:?} s, worst <= {beat_worst:?} s: {beats:?}\n"
        )
    }

    fn count(&self) -> String {
        let mut counts: HashMap<(&str, Option<u16>), usize> = HashMap::new();
        for entry in self.entries {
            let name = match &entry.what {
                What::Register { .. } => "register",
                What::Login { .. } => "login",
                What::Change { .. } => "change of a password",
                What::Access { .. } => "request",
                What::Refresh { .. } => "refresh",
                What::Revoke { ends: Some(_), .. } => "logout or change of a password",
                What::Revoke { .. } => "change of roles",
                What::Limited { .. } => "limited request",
            };
            *counts.entry((name, entry.status)).or_default() += 1;
        }
        let mut lines: Vec<_> = counts
            .into_iter()
            .map(|((name, status), count)| {
                let status =
                    status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
                format!("{name} {status}: {count}\n")
            })
            .collect();
        let mut faults: HashMap<&str, usize> = HashMap::new();
        for fault in self.faults {
            *faults.entry(fault.what).or_default() += 1;
        }
        lines.extend(faults.into_iter().map(|(what, count)| format!("{what}: {count}\n")));
        lines.sort();
        lines.concat()
    }
}

fn is_release() -> bool {
    std::env::var_os("PORTCULLIS").is_some() || !cfg!(debug_assertions)
}

/// How long a revoked token may be accepted by a gateway that is connected: the contract's bound, or
/// more for a debug build on a machine that runs other tests as well.
fn bound() -> Duration {
    Duration::from_secs(if is_release() { 1 } else { 4 })
}
