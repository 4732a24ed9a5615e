//! Small questions of many, asked together: while Postgres answers some, those that come meanwhile gather, and go
//! with the next query. Who comes alone is asked about at once, of ten thousand that come together some hundred at
//! a time: two queries go at once, so that each is about many, and no others but where those are slow.
//!
//! However many one user has, they keep nobody waiting: each user's first goes before anybody's second, and a user
//! is part of one query at a time, so that one about whom the policy is slow soon waits alone. What is late is asked
//! again among fewer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::inquiries::NotTold;

/// Most questions of one query: it must be answered soon, also by a busy server.
const TOGETHER: usize = 256;

/// Queries at once that are not slow.
const AT_ONCE: usize = 2;

/// A query that takes longer is slow: it keeps nobody waiting any more, as long as there is a session left. Those of
/// 10,000 who come back at once take 20 to 40 ms (`tests/bench/run.sh storm`).
const SLOW: Duration = Duration::from_millis(250);

/// Among so much fewer is asked again what was late.
const FEWER: usize = 8;

/// Questions on their way to the task that gathers them; then whoever asks waits.
const ARRIVING: usize = 1024;

/// Where questions are put. It gathers for as long as this lives.
pub struct Gathering<Q, A> {
    asked: mpsc::Sender<Asked<Q, A>>,
    _gathering: AbortOnDropHandle<()>,
}

/// One question, and who waits for its answer.
struct Asked<Q, A> {
    whose: Arc<str>,
    question: Arc<Q>,
    /// Among how many it may be, itself included.
    among: usize,
    answer: oneshot::Sender<Result<A, Arc<NotTold>>>,
}

impl<Q: Send + Sync + 'static, A: Send + 'static> Gathering<Q, A> {
    /// At most so many queries at once, by `look`, which answers each of its questions, in their order.
    pub fn new<L, F>(queries: usize, look: L) -> Gathering<Q, A>
    where
        L: Fn(Vec<Arc<Q>>) -> F + Send + 'static,
        F: Future<Output = Result<Vec<A>, NotTold>> + Send + 'static,
    {
        let (asked, arriving) = mpsc::channel(ARRIVING);
        let gathering = tokio::spawn(gather(arriving, queries, look));
        Gathering {
            asked,
            _gathering: AbortOnDropHandle::new(gathering),
        }
    }

    /// The answer to one question of this user.
    pub async fn ask(&self, whose: &str, question: Q) -> Result<A, Arc<NotTold>> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            whose: whose.into(),
            question: Arc::new(question),
            among: TOGETHER,
            answer,
        };
        // the task that gathers ends with this alone
        let _ = self.asked.send(asked).await;
        answered
            .await
            .unwrap_or_else(|_| Err(Arc::new(NotTold::Late)))
    }
}

async fn gather<Q, A, L, F>(mut arriving: mpsc::Receiver<Asked<Q, A>>, queries: usize, look: L)
where
    L: Fn(Vec<Arc<Q>>) -> F,
    F: Future<Output = Result<Vec<A>, NotTold>>,
{
    let mut waiting: Waiting<Q, A> = Waiting::default();
    let mut under_way = FuturesUnordered::new();
    // when those began that are under way, the oldest first
    let mut begun: VecDeque<Instant> = VecDeque::new();
    let mut arrived = Vec::new();
    loop {
        // one moment for all of it: what becomes slow in between must not be waited for
        let now = Instant::now();
        let is_quick = |began: &&Instant| now < **began + SLOW;
        while under_way.len() < queries
            && begun.iter().filter(is_quick).count() < AT_ONCE
            && let Some(batch) = waiting.take()
        {
            let questions = batch.iter().map(|asked| asked.question.clone()).collect();
            let told = look(questions);
            begun.push_back(now);
            under_way.push(async move { (now, batch, told.await) });
        }
        // until another one may go besides those that are slow
        let is_enough = under_way.len() >= queries || waiting.turns.is_empty();
        let slow_at = (begun.iter().find(is_quick)).map(|began| *began + SLOW);
        let slow = async {
            match slow_at {
                Some(at) if !is_enough => tokio::time::sleep_until(at).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            count = arriving.recv_many(&mut arrived, ARRIVING) => {
                if count == 0 {
                    return;
                }
                arrived.drain(..).for_each(|asked| waiting.push(asked));
            }
            Some((began, batch, told)) = under_way.next() => {
                let place = begun.iter().position(|other| *other == began);
                place.and_then(|place| begun.remove(place));
                waiting.answer(batch, told);
            }
            () = slow => {}
        }
    }
}

/// What waits to be asked, by whose it is: of each client one question at most, so their number bounds it.
struct Waiting<Q, A> {
    users: HashMap<Arc<str>, OfUser<Q, A>>,
    /// Whose turn it is, each once: those of whom something waits that may be asked.
    turns: VecDeque<Arc<str>>,
}

struct OfUser<Q, A> {
    waiting: VecDeque<Asked<Q, A>>,
    /// Whether they are part of a query.
    is_asked_about: bool,
}

impl<Q, A> Default for Waiting<Q, A> {
    fn default() -> Waiting<Q, A> {
        Waiting {
            users: HashMap::new(),
            turns: VecDeque::new(),
        }
    }
}

impl<Q, A> Waiting<Q, A> {
    fn push(&mut self, asked: Asked<Q, A>) {
        let whose = asked.whose.clone();
        let user = self.users.entry(whose.clone()).or_insert(OfUser {
            waiting: VecDeque::new(),
            is_asked_about: false,
        });
        user.waiting.push_back(asked);
        if user.waiting.len() == 1 && !user.is_asked_about {
            self.turns.push_back(whose);
        }
    }

    /// What is to be asked next, together; None where nothing may be.
    fn take(&mut self) -> Option<Vec<Asked<Q, A>>> {
        let mut batch: Vec<Asked<Q, A>> = Vec::new();
        let mut most = TOGETHER;
        let mut gone = Vec::new();
        while batch.len() < most
            && let Some(whose) = self.turns.pop_front()
        {
            let Some(user) = self.users.get_mut(&whose) else {
                continue;
            };
            let Some(asked) = user.waiting.pop_front() else {
                continue;
            };
            if asked.among <= batch.len() {
                // it may not be among so many: the next ones begin with it
                user.waiting.push_front(asked);
                self.turns.push_front(whose);
                break;
            }
            if !user.waiting.is_empty() {
                self.turns.push_back(whose.clone());
            }
            if asked.answer.is_closed() {
                // who asked needs no answer any more
                gone.push(whose);
            } else {
                most = most.min(asked.among);
                batch.push(asked);
            }
        }
        let part: HashSet<&Arc<str>> = batch.iter().map(|asked| &asked.whose).collect();
        for whose in part {
            if let Some(user) = self.users.get_mut(whose) {
                user.is_asked_about = true;
            }
        }
        let users = &mut self.users;
        self.turns.retain(|whose| {
            let user = users.get(whose);
            user.is_some_and(|user| !user.is_asked_about)
        });
        for whose in gone {
            self.forget(&whose);
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Answers those who asked, or has what was late asked again among fewer.
    fn answer(&mut self, batch: Vec<Asked<Q, A>>, told: Result<Vec<A>, NotTold>) {
        let part: HashSet<Arc<str>> = batch.iter().map(|asked| asked.whose.clone()).collect();
        let among = batch.len().div_ceil(FEWER);
        match told {
            // nobody listens any more where a client is gone
            Ok(answers) => {
                for (asked, answer) in batch.into_iter().zip(answers) {
                    let _ = asked.answer.send(Ok(answer));
                }
            }
            Err(error) if error.is_late() && batch.len() > 1 => {
                tracing::warn!(
                    questions = batch.len(),
                    "no answer in time: asking fewer at once"
                );
                for asked in batch {
                    self.push(Asked { among, ..asked });
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for asked in batch {
                    let _ = asked.answer.send(Err(error.clone()));
                }
            }
        }
        for whose in part {
            let Some(user) = self.users.get_mut(&whose) else {
                continue;
            };
            user.is_asked_about = false;
            if user.waiting.is_empty() {
                self.forget(&whose);
            } else {
                self.turns.push_back(whose);
            }
        }
    }

    /// Nothing is kept of users of whom nothing is asked any more.
    fn forget(&mut self, whose: &Arc<str>) {
        let is_over = |user: &OfUser<Q, A>| user.waiting.is_empty() && !user.is_asked_about;
        if self.users.get(whose).is_some_and(is_over) {
            self.users.remove(whose);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use tokio::sync::Semaphore;

    type Answered = oneshot::Receiver<Result<usize, Arc<NotTold>>>;

    fn push(waiting: &mut Waiting<usize, usize>, whose: &str, question: usize) -> Answered {
        let (answer, answered) = oneshot::channel();
        waiting.push(Asked {
            whose: whose.into(),
            question: Arc::new(question),
            among: TOGETHER,
            answer,
        });
        answered
    }

    fn of(batch: &[Asked<usize, usize>], whose: &str) -> usize {
        batch.iter().filter(|asked| &*asked.whose == whose).count()
    }

    fn told(batch: &[Asked<usize, usize>]) -> Result<Vec<usize>, NotTold> {
        Ok(batch.iter().map(|asked| *asked.question).collect())
    }

    #[test]
    fn who_has_many_questions_keeps_nobody_waiting() {
        let mut waiting = Waiting::default();
        let many: Vec<Answered> = (0..1000).map(|n| push(&mut waiting, "cem", n)).collect();
        let mut one = push(&mut waiting, "bea", 1000);
        let first = waiting.take().unwrap();
        assert_eq!((first.len(), of(&first, "bea")), (TOGETHER, 1));
        let again = push(&mut waiting, "bea", 1002);
        assert!(waiting.take().is_none(), "both are asked about");
        let another = push(&mut waiting, "ann", 1001);
        let second = waiting.take().unwrap();
        assert_eq!(
            (second.len(), of(&second, "ann")),
            (1, 1),
            "cem waits, ann does not"
        );
        for batch in [second, first] {
            let answers = told(&batch);
            waiting.answer(batch, answers);
        }
        assert_eq!(one.try_recv().unwrap().unwrap(), 1000);
        while let Some(batch) = waiting.take() {
            let answers = told(&batch);
            waiting.answer(batch, answers);
        }
        for (n, mut answered) in many.into_iter().chain([another, again]).enumerate() {
            let question = if n < 1000 { n } else { n + 1 };
            assert_eq!(answered.try_recv().unwrap().unwrap(), question);
        }
        assert!(waiting.users.is_empty() && waiting.turns.is_empty());
    }

    #[test]
    fn what_is_late_is_asked_again_among_fewer_and_one_that_is_slow_is_late_alone() {
        let mut waiting = Waiting::default();
        let mut all: Vec<Answered> = (0..TOGETHER)
            .map(|n| push(&mut waiting, &n.to_string(), n))
            .collect();
        let mut sizes = Vec::new();
        while let Some(batch) = waiting.take() {
            sizes.push(batch.len());
            let answers = match batch.iter().any(|asked| *asked.question == 77) {
                true => Err(NotTold::Late),
                false => told(&batch),
            };
            waiting.answer(batch, answers);
        }
        let slow = all.remove(77).try_recv().unwrap();
        assert!(slow.is_err());
        for mut answered in all {
            assert!(answered.try_recv().unwrap().is_ok());
        }
        assert_eq!(sizes[..9], [TOGETHER, 32, 32, 32, 32, 32, 32, 32, 32]);
        assert_eq!(sizes.len(), 1 + 8 + 8 + 4, "{sizes:?}");
        assert!(waiting.users.is_empty() && waiting.turns.is_empty());
    }

    #[test]
    fn of_those_who_are_gone_nothing_is_asked_and_nothing_stays() {
        let mut waiting = Waiting::default();
        for n in 0..10 {
            drop(push(&mut waiting, &(n % 3).to_string(), n));
        }
        assert!(waiting.take().is_none());
        assert!(waiting.users.is_empty() && waiting.turns.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn two_queries_go_at_once_and_more_where_those_are_slow() {
        let begun = Arc::new(Mutex::new(Vec::new()));
        let (counted, start) = (begun.clone(), Instant::now());
        let gathering = Gathering::new(4, move |questions: Vec<Arc<u64>>| {
            counted.lock().unwrap().push(start.elapsed());
            async move {
                tokio::time::sleep(Duration::from_secs(*questions[0])).await;
                Ok(questions.iter().map(|question| **question).collect())
            }
        });
        // each comes a millisecond after the one before, and is asked about for ten seconds
        let come = |n: u64| {
            let gathering = &gathering;
            async move {
                tokio::time::sleep(Duration::from_millis(n)).await;
                gathering.ask(&n.to_string(), 10).await.unwrap()
            }
        };
        futures::future::join_all((1..=8).map(come)).await;
        let begun = begun.lock().unwrap();
        let milliseconds: Vec<_> = begun.iter().map(Duration::as_millis).collect();
        assert_eq!(
            milliseconds,
            [1, 2, 251],
            "all who came meanwhile together, once the first was slow"
        );
    }

    #[tokio::test]
    async fn who_comes_alone_is_asked_about_at_once_and_what_comes_meanwhile_together() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let let_go = Arc::new(Semaphore::new(0));
        let (counted, going) = (sizes.clone(), let_go.clone());
        let gathering = Gathering::new(1, move |questions: Vec<Arc<usize>>| {
            counted.lock().unwrap().push(questions.len());
            let going = going.clone();
            async move {
                going.acquire().await.unwrap().forget();
                Ok(questions.iter().map(|question| **question).collect())
            }
        });
        let first = gathering.ask("ann", 0);
        let more = async {
            while sizes.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            let more = (1..100).map(|n| gathering.ask("bea", n));
            let let_go = async {
                // all are asked by then, in the order of the tasks of one thread
                tokio::task::yield_now().await;
                let_go.add_permits(2);
            };
            futures::join!(futures::future::join_all(more), let_go).0
        };
        let (first, more) = futures::join!(first, more);
        assert_eq!(first.unwrap(), 0);
        let more: Vec<usize> = more.into_iter().map(Result::unwrap).collect();
        assert_eq!(more, (1..100).collect::<Vec<_>>());
        assert_eq!(*sizes.lock().unwrap(), [1, 99]);
    }
}
