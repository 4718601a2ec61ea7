//! The cost of a new password: the worst password that a client can submit for checking, compared
//! with one hash.
//!
//! `cargo bench --bench password` prints milliseconds, the slowest last, and fails if checking costs
//! more than a hash: otherwise anyone who may register could keep the machine busy with passwords.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use portcullis::identity::password::{Password, StoredHash};
use portcullis::identity::strength::check_strength;

fn main() -> ExitCode {
    let hash = median(|| {
        let _ = black_box(StoredHash::hash(&Password::new("plum orbit tenant 71".to_owned())));
    });
    let name = "4@8({[<369&#!1/|0$5+7%2 ".repeat(40);
    let personal = ["4@8.1!|7+5$@example.com", name.as_str(), "https://app.example.com/auth"];
    let mut checked: Vec<(String, Duration)> = passwords()
        .into_iter()
        .map(|text| {
            let password = Password::new(text.clone());
            let taken = median(|| {
                let _ = black_box(check_strength(&password, 8, &personal));
            });
            (text, taken)
        })
        .collect();
    checked.sort_by_key(|(_, taken)| *taken);
    println!("{:>8.2} ms  one hash", millis(hash));
    for (text, taken) in &checked {
        let shown: String = text.chars().take(48).collect();
        println!("{:>8.2} ms  {shown}", millis(*taken));
    }
    let worst = checked.last().map_or(Duration::ZERO, |(_, taken)| *taken);
    if worst <= hash {
        return ExitCode::SUCCESS;
    }
    println!("checking costs more than a hash");
    ExitCode::FAILURE
}

/// Passwords of the maximum length, made for each part of the estimate: words in letters and in the
/// symbols that replace them, dates, rows of keys, repetitions of several lengths, and no pattern
/// at all.
fn passwords() -> Vec<String> {
    let mut state = 1_u64;
    let mut random = |letters: &str| -> String {
        let letters: Vec<char> = letters.chars().collect();
        (0..1_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                letters[(state >> 33) as usize % letters.len()]
            })
            .collect()
    };
    let mut passwords = vec![
        random("4@8({[<369&#!1/|0$5+7%2"),
        random("4@310$5+7a"),
        random("0123456789"),
        random("12"),
        random("ab"),
        random("abcdefghijklmnopqrstuvwxyz"),
        random("qwertzuiop"),
        random("aA4@"),
        "a".repeat(1_000),
        "1".repeat(1_000),
        "4@8({[<369&#!1/|0$5+7%2".repeat(40),
        "({[<1!|7".repeat(125),
        "p4$$w0rd1!".repeat(100),
        "1.1.1990".repeat(120),
        "qazwsxedc".repeat(110),
    ];
    for length in [2, 3, 5, 7, 11, 16] {
        let part: String = "4@8({[<369&#!1/|".chars().take(length).collect();
        passwords.push(part.repeat(1_000 / length));
    }
    passwords
}

fn median(work: impl Fn()) -> Duration {
    work();
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
