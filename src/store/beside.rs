//! Two stores asked at once, of which v2 decides: v3 may be slower, but only a little.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

/// How much longer than v2 the v3 store may take. One member that is silent leaves time for a second one.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// v2's answer, and v3's if it comes within [`PATIENCE`] of it. Who cannot do without v3's goes on waiting for the same future.
pub(super) async fn beside<A, B>(
    v2: impl Future<Output = A>,
    mut v3: impl Future<Output = B> + Unpin,
) -> (A, Option<B>) {
    let mut v2 = pin!(v2);
    let mut early = None;
    let decided = loop {
        tokio::select! {
            answer = &mut v2 => break answer,
            answer = &mut v3, if early.is_none() => early = Some(answer),
        }
    };
    let answer = match early {
        Some(answer) => Some(answer),
        None => timeout(PATIENCE, v3).await.ok(),
    };
    (decided, answer)
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    async fn after(seconds: u64) -> u64 {
        sleep(Duration::from_secs(seconds)).await;
        seconds
    }

    #[tokio::test(start_paused = true)]
    async fn v3_gets_a_little_more_time_than_v2() {
        for (v2, v3, expected, seconds) in [
            (0, 0, (0, Some(0)), 0),
            (0, 2, (0, Some(2)), 2),
            (0, 9, (0, None), 3),
            (5, 1, (5, Some(1)), 5),
            (5, 7, (5, Some(7)), 7),
            (5, 9, (5, None), 8),
        ] {
            let start = Instant::now();
            assert_eq!(beside(after(v2), pin!(after(v3))).await, expected);
            assert_eq!(start.elapsed().as_secs(), seconds, "{v2} {v3}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_left_behind_can_still_be_waited_for() {
        let mut v3 = pin!(after(9));
        assert_eq!(beside(after(0), v3.as_mut()).await, (0, None));
        assert_eq!(v3.await, 9);
    }
}
