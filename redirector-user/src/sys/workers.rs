//! Threads that wait for the next piece of work: to start one costs more than most of what is done on it.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many wait; those beyond it end.
const IDLE: usize = 16;

/// Runs, says what is left of the thread, answers.
type Job = Box<dyn FnOnce(&mut dyn FnMut(After)) + Send>;
type Outcome<T> = Result<T, Box<dyn Any + Send>>;

struct Message {
    job: Job,
    /// The way to the worker that receives it, for the next one.
    worker: Sender<Message>,
}

fn idle() -> MutexGuard<'static, Vec<Sender<Message>>> {
    static WORKERS: Mutex<Vec<Sender<Message>>> = Mutex::new(Vec::new());
    WORKERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a piece of work leaves of its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// A thread like any other.
    Reusable,
    /// A thread that no other work can use.
    Spent,
}

/// Work on another thread.
#[derive(Debug)]
pub struct Work<T>(Receiver<Outcome<T>>);

impl<T> Work<T> {
    /// Waits for its result.
    pub fn join(self) -> T {
        let outcome = self.0.recv().unwrap_or_else(|_| unreachable!("every job answers"));
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Its result, once it is there. The work has none afterwards.
    pub fn take(&self) -> Option<T> {
        self.0.try_recv().ok().map(|outcome| outcome.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

/// Begins work on another thread.
///
/// # Errors
///
/// If no thread can be started.
pub fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<Work<T>> {
    let (job, answer) = job(|| (work(), After::Reusable));
    hand_out(job)?;
    Ok(answer)
}

/// Runs `work` on another thread and waits for it; it says what it leaves of the thread.
pub(super) fn run<T: Send>(work: impl FnOnce() -> (T, After) + Send) -> io::Result<T> {
    let (job, answer) = job(work);
    // SAFETY: the lifetime alone changes. The job has used up `work`, with all that it borrows, before it answers, and
    // this function does not return before: `hand_out` either fails, and has dropped the job, or leads to an answer.
    let job = unsafe { std::mem::transmute::<Box<dyn FnOnce(&mut dyn FnMut(After)) + Send + '_>, Job>(job) };
    hand_out(job)?;
    Ok(answer.join())
}

type Borrowing<'a> = Box<dyn FnOnce(&mut dyn FnMut(After)) + Send + 'a>;

fn job<'a, T: Send + 'a>(work: impl FnOnce() -> (T, After) + Send + 'a) -> (Borrowing<'a>, Work<T>) {
    let (answer, answered) = mpsc::channel();
    let job = Box::new(move |leave: &mut dyn FnMut(After)| {
        let (outcome, after) = match catch_unwind(AssertUnwindSafe(work)) {
            Ok((result, after)) => (Ok(result), after),
            Err(panic) => (Err(panic), After::Spent),
        };
        // First, so that the next request of the one who waits finds this thread.
        leave(after);
        // If that fails, the caller has stopped waiting.
        let _ = answer.send(outcome);
    });
    (job, Work(answered))
}

fn hand_out(mut job: Job) -> io::Result<()> {
    loop {
        let waiting = idle().pop();
        let Some(worker) = waiting else { break };
        let message = Message { job, worker: worker.clone() };
        match worker.send(message) {
            Ok(()) => return Ok(()),
            // It has ended.
            Err(mpsc::SendError(message)) => job = message.job,
        }
    }
    let (worker, messages) = mpsc::channel();
    std::thread::Builder::new().name("apart".into()).spawn(move || work_off(&messages))?;
    let message = Message { job, worker: worker.clone() };
    worker.send(message).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// Until no sender is left.
fn work_off(messages: &Receiver<Message>) {
    while let Ok(Message { job, worker }) = messages.recv() {
        let mut worker = Some(worker);
        job(&mut |after| {
            let mut idle = idle();
            if after == After::Reusable && idle.len() < IDLE {
                idle.extend(worker.take());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(after: After) -> std::thread::ThreadId {
        run(|| (std::thread::current().id(), after)).unwrap()
    }

    #[test]
    fn a_thread_serves_again_unless_it_is_spent() {
        let (mut text, first) = (String::new(), thread(After::Spent));
        let again = run(|| {
            text.push('a');
            (std::thread::current().id(), After::Reusable)
        });
        assert_eq!(text, "a");
        assert_ne!(first, again.unwrap(), "a spent thread has served again");
        let (busy, wait) = mpsc::channel::<()>();
        let waiting = begin(move || wait.recv().is_err()).unwrap();
        assert!(waiting.take().is_none());
        drop(busy);
        assert!(waiting.join());
    }

    #[test]
    fn a_panic_goes_to_the_one_who_waits() {
        let panic = catch_unwind(|| run::<()>(|| panic!("on purpose")));
        assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"on purpose"));
        assert_eq!(begin(|| 7).unwrap().join(), 7);
    }
}
