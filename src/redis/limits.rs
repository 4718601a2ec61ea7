//! Budgets of shared limits: GCRA in one script, on the server's clock.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Script};

use super::Redis;
use crate::limit::{Budget, Held, Place, Returned, SharedStore, Unavailable, Verdict};

/// The scripts, with their digests.
pub(super) struct Scripts {
    pub(super) beat: Script,
    take: Script,
    give_back: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        let of = |text: &str| Script::new(&format!("{FUNCTIONS}{text}"));
        Self { beat: Script::new(BEAT), take: of(TAKE), give_back: of(GIVE_BACK) }
    }

    /// `deadline`: when the gateway stops waiting for the answer.
    async fn take(
        &self,
        budgets: &[Budget],
        deadline: u64,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<Verdict> {
        let mut invocation = self.take.prepare_invoke();
        for Budget { name, interval, tolerance } in budgets {
            invocation.key(key(name)).arg(*interval).arg(*tolerance);
        }
        invocation.arg(deadline);
        let (is_taken, values): (bool, Vec<u64>) = invocation.invoke_async(connection).await?;
        Ok(if is_taken {
            let whole = values.chunks(2).map(|parts| parts[0] * NANOS + parts[1]);
            Verdict::Taken(whole.collect())
        } else {
            Verdict::Exceeded(Duration::from_nanos(values.first().copied().unwrap_or_default()))
        })
    }

    async fn give_back(
        &self,
        returned: &[Returned],
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<()> {
        let mut invocation = self.give_back.prepare_invoke();
        for Returned { budget, until } in returned {
            invocation.key(key(&budget.name)).arg(budget.interval);
            invocation.arg(until / NANOS).arg(until % NANOS);
        }
        invocation.invoke_async(connection).await
    }
}

impl SharedStore for Redis {
    fn take<'a>(
        &'a self,
        budgets: &'a [Budget],
    ) -> Pin<Box<dyn Future<Output = Result<Verdict, Unavailable>> + Send + 'a>> {
        Box::pin(async move {
            let current = self.current().ok_or(Unavailable)?;
            let mut connection = MultiplexedConnection::clone(&current);
            let deadline = self.deadline();
            self.scripts.take(budgets, deadline, &mut connection).await.map_err(|error| {
                self.fail(&current, &error);
                Unavailable
            })
        })
    }

    /// A cell that cannot be given back stays taken until it is replenished.
    fn give_back(&self, returned: Vec<Returned>, held: Option<Held>) {
        let Some(current) = self.current() else { return };
        let mut connection = MultiplexedConnection::clone(&current);
        let scripts = Arc::clone(&self.scripts);
        self.tasks.spawn_on(
            async move {
                // The next question notices a server that is away.
                let _ = scripts.give_back(&returned, &mut connection).await;
                drop(held);
            },
            &self.background,
        );
    }

    fn is_available(&self) -> bool {
        self.current().is_some()
    }

    fn place(&self) -> Place {
        self.known_place()
    }
}

fn key(name: &str) -> String {
    format!("portcullis:limit:{name}")
}

const NANOS: u64 = 1_000_000_000;

/// A deadline that does not come. Lua's numbers are exact up to here.
pub(super) const NEVER: u64 = (1 << 53) - 1;

/// Records a beat of a gateway, and returns the number of those that have had one lately, and the
/// time.
///
/// KEYS: the gateways. ARGV: the id of this one; after how many seconds one no longer counts.
const BEAT: &str = "
local time = redis.call('TIME')
local now = tonumber(time[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('EXPIRE', KEYS[1], 3600)
local gateways, before = redis.call('ZRANGE', KEYS[1], 0, -1), 0
for _, id in ipairs(gateways) do
  if id < ARGV[1] then before = before + 1 end
end
return {#gateways, before, tonumber(time[1]), tonumber(time[2])}
";

/// Times are seconds and nanoseconds, because a double holds nanoseconds since 1970 only to within
/// a quarter of a microsecond. A difference of up to 104 days in nanoseconds is exact.
const FUNCTIONS: &str = "
local time = redis.call('TIME')
local seconds, nanos = tonumber(time[1]), tonumber(time[2]) * 1000

-- By how much the TAT of a key is ahead of now, in nanoseconds.
local function read(key)
  local tat = redis.call('GET', key)
  if not tat then return 0 end
  local s, n = string.match(tat, '^(%d+):(%d+)$')
  return math.max(0, (tonumber(s) - seconds) * 1e9 + (tonumber(n) - nanos))
end

-- Sets the TAT of a key, which is forgotten when it has passed. Returns its parts.
local function write(key, ahead)
  local n = nanos + ahead
  local s = math.floor(n / 1e9)
  n = n - s * 1e9
  s = seconds + s
  local life = math.max(1, math.ceil(ahead / 1e6))
  redis.call('SET', key, string.format('%.0f:%.0f', s, n), 'PX', string.format('%.0f', life))
  return s, n
end
";

/// Takes one cell of each budget, or none. Returns 1 and each TAT in two parts, or 0 and the time
/// after which all have one. After the deadline, it takes nothing, because the cell would not be given
/// back.
///
/// KEYS: the budgets. ARGV: the interval and the tolerance of each, in nanoseconds, then the
/// deadline in Unix milliseconds.
const TAKE: &str = "
if seconds * 1000 + nanos / 1e6 > tonumber(ARGV[#ARGV]) then return redis.error_reply('LATE the gateway has stopped waiting') end
local ahead, wait = {}, 0
for i = 1, #KEYS do
  local interval, tolerance = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local most = interval + tolerance
  ahead[i] = read(KEYS[i])
  if ahead[i] > most then
    -- The clock went back, or the limit became smaller. From now on, the budget is replenished in time.
    ahead[i] = most
    write(KEYS[i], most)
  end
  wait = math.max(wait, ahead[i] - tolerance)
end
if wait > 0 then return {0, {wait}} end
local parts = {}
for i = 1, #KEYS do
  local s, n = write(KEYS[i], ahead[i] + tonumber(ARGV[2 * i - 1]))
  parts[2 * i - 1], parts[2 * i] = s, n
end
return {1, parts}
";

/// Gives cells back, as far as they have not been replenished since.
///
/// KEYS: the budgets. ARGV: for each the interval in nanoseconds, and the TAT after the cell was
/// taken in two parts.
const GIVE_BACK: &str = "
for i = 1, #KEYS do
  local interval = tonumber(ARGV[3 * i - 2])
  local s, n = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local refund = math.min((s - seconds) * 1e9 + (n - nanos), interval)
  local ahead = read(KEYS[i]) - math.max(0, refund)
  if ahead > 0 then write(KEYS[i], ahead) else redis.call('DEL', KEYS[i]) end
end
return 1
";

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    use super::*;
    use crate::limit::{Cell, Count, KeyKind, Limit, Settings};
    use crate::redis::server;

    /// The scripts with a clock that the test sets, and keys that outlive it.
    fn scripts(now: u64) -> Scripts {
        let functions = FUNCTIONS
            .replace(
                "redis.call('TIME')",
                &format!("{{'{}', '{}'}}", now / 1_000_000, now % 1_000_000),
            )
            .replace("math.ceil(ahead / 1e6)", "3600000");
        let of = |text: &str| Script::new(&format!("{functions}{text}"));
        Scripts { beat: Script::new(BEAT), take: of(TAKE), give_back: of(GIVE_BACK) }
    }

    /// Runs these steps in Redis and with governor: the time in microseconds by which the clock
    /// advances, and whether an earlier cell is given back then instead of taking one.
    async fn run(
        connection: &mut MultiplexedConnection,
        name: String,
        (requests, per): (u32, Duration),
        steps: Vec<(u64, bool)>,
    ) {
        let clock = FakeRelativeClock::default();
        let requests = NonZeroU32::new(requests).unwrap();
        let settings = Settings {
            requests,
            per,
            ipv6_prefix: 64,
            count: Count::All,
            key: KeyKind::Client,
            observe: false,
            shared: true,
            max_clients: 1000,
        };
        let limit = Limit::with_clock("test", settings, clock.clone());
        let interval = u64::try_from((per / requests.get()).as_nanos()).unwrap();
        let tolerance = interval * u64::from(requests.get() - 1);
        let budget = Budget { name, interval, tolerance };
        let mut now = 1_795_981_568_999_000;
        let mut cells: Vec<(Cell, Returned)> = Vec::new();
        for (advance, gives_back) in steps {
            now += advance;
            clock.advance(Duration::from_micros(advance));
            let scripts = scripts(now);
            if gives_back && !cells.is_empty() {
                let (cell, returned) = cells.remove(0);
                limit.give_back(cell);
                scripts.give_back(&[returned], connection).await.unwrap();
                continue;
            }
            let here = limit.take_client("192.0.2.1".parse().unwrap());
            let there =
                scripts.take(std::slice::from_ref(&budget), NEVER, connection).await.unwrap();
            match (here, there) {
                (Ok(cell), Verdict::Taken(until)) => {
                    cells.push((cell, Returned { budget: budget.clone(), until: until[0] }));
                }
                (Err(here), Verdict::Exceeded(there)) => assert_eq!(here.retry_after, there),
                (here, there) => panic!("{here:?} here, {there:?} there"),
            }
        }
    }

    /// The verdicts are governor's, to the nanosecond.
    #[test]
    fn the_scripts_decide_as_governor_does() {
        let Some(server) = server::Redis::start(&[]) else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = redis::Client::open(server.url()).unwrap();
        let connection = runtime.block_on(client.get_multiplexed_async_connection()).unwrap();
        let number = std::cell::Cell::new(0);
        let limits = (1_u32..20, prop::sample::select(vec![1_u64, 7, 60_000, 3_600_000]));
        let steps = prop::collection::vec((0_u64..2_000_000, prop::bool::weighted(0.2)), 1..60);
        let test = |((requests, millis), scale, steps): ((u32, u64), u64, Vec<(u64, bool)>)| {
            number.set(number.get() + 1);
            let name = format!("case:{}", number.get());
            let steps = steps.into_iter().map(|(by, back)| (by / scale, back)).collect();
            let limit = (requests, Duration::from_millis(millis));
            runtime.block_on(run(&mut connection.clone(), name, limit, steps));
            Ok(())
        };
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(100));
        let scales = prop::sample::select(vec![1_u64, 100, 100_000]);
        runner.run(&(limits, scales, steps), test).unwrap();
    }

    /// Groups and key: all or none.
    #[tokio::test]
    async fn a_refused_budget_leaves_the_others_alone() {
        let Some(server) = server::Redis::start(&[]) else { return };
        let client = redis::Client::open(server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let budget = |name: &str, requests: u64| Budget {
            name: name.into(),
            interval: 60 * NANOS,
            tolerance: 60 * NANOS * (requests - 1),
        };
        let (group, key) = (budget("group", 2), budget("key", 1));
        let scripts = Scripts::new();
        let both = [group.clone(), key];
        assert!(matches!(
            scripts.take(&both, NEVER, &mut connection).await.unwrap(),
            Verdict::Taken(until) if until.len() == 2
        ));
        for _ in 0..3 {
            let refused = scripts.take(&both, NEVER, &mut connection).await.unwrap();
            assert!(
                matches!(refused, Verdict::Exceeded(wait) if wait.as_secs() >= 59),
                "{refused:?}"
            );
        }
        let group = [group];
        assert!(matches!(
            scripts.take(&group, NEVER, &mut connection).await,
            Ok(Verdict::Taken(_))
        ));
        assert!(matches!(
            scripts.take(&group, NEVER, &mut connection).await,
            Ok(Verdict::Exceeded(_))
        ));
        let life: u64 = server.run(&["PTTL", "portcullis:limit:group"]).parse().unwrap();
        assert!((110_000..=120_000).contains(&life), "{life}");
    }

    /// Those who had logged in meanwhile would be refused for a day.
    #[tokio::test]
    async fn a_clock_that_was_ahead_costs_a_budget_at_most() {
        let Some(server) = server::Redis::start(&[]) else { return };
        let client = redis::Client::open(server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let (interval, tolerance) = (60 * NANOS, 60 * NANOS);
        let budget = [Budget { name: "ahead".into(), interval, tolerance }];
        let now = 1_795_981_568_000_000;
        let mut verdicts = Vec::new();
        for seconds in [86_400, 0, 30, 61] {
            let scripts = scripts(now + seconds * 1_000_000);
            let verdict = scripts.take(&budget, NEVER, &mut connection).await.unwrap();
            verdicts.push(matches!(verdict, Verdict::Taken(_)));
        }
        assert_eq!(verdicts, [true, false, false, true]);
    }

    #[tokio::test]
    async fn gateways_are_counted_while_they_beat() {
        let Some(server) = server::Redis::start(&[]) else { return };
        let client = redis::Client::open(server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let scripts = Scripts::new();
        for (id, place) in [("b", (1, 0)), ("a", (2, 0)), ("b", (2, 1))] {
            let mut beat = scripts.beat.key("gateways");
            let counted = beat.arg(id).arg(10).invoke_async(&mut connection).await;
            let (counted, rank, ..): (u32, u32, u64, u64) = counted.unwrap();
            assert_eq!((counted, rank), place);
        }
        server.run(&["ZADD", "gateways", "1", "a"]);
        let mut beat = scripts.beat.key("gateways");
        let counted = beat.arg("b").arg(10).invoke_async(&mut connection).await;
        let (counted, rank, ..): (u32, u32, u64, u64) = counted.unwrap();
        assert_eq!((counted, rank), (1, 0));
    }
}
