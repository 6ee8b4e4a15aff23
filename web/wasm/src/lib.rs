//! The library for a page: a question in JSON with bytes of headers beside it, an answer in JSON.
//!
//! The page writes a question where [`room`] says, calls [`answer`], and reads what it points to. A document of an answer is the
//! text that the program writes with `--json`; `html` is the page that `--format html` writes.
//!
//! A panic is a trap: what the module holds is then lost, and the page starts another one. [`last_words`] says what happened.

mod questions;

use std::cell::RefCell;

use questions::State;

#[derive(Default)]
struct Held {
    question: Vec<u8>,
    answer: Vec<u8>,
    state: State,
}

thread_local! {
    static HELD: RefCell<Held> = RefCell::default();
    static LAST_WORDS: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Begins; to be called once, before anything else.
#[unsafe(no_mangle)]
pub extern "C" fn start() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        let place = panic.location().map(|place| format!("{}:{}", place.file(), place.line())).unwrap_or_default();
        LAST_WORDS.set(format!("{message} ({place})"));
    }));
}

/// Where the message of a panic is, after a trap.
#[unsafe(no_mangle)]
pub extern "C" fn last_words() -> *const u8 {
    LAST_WORDS.with_borrow(|words| words.as_ptr())
}

/// The bytes of that message; none where a trap was no panic.
#[unsafe(no_mangle)]
pub extern "C" fn last_words_length() -> usize {
    LAST_WORDS.with_borrow(String::len)
}

/// Makes room for a question of so many bytes, and says where it is.
#[unsafe(no_mangle)]
pub extern "C" fn room(length: usize) -> *mut u8 {
    HELD.with_borrow_mut(|held| {
        held.question = vec![0; length];
        held.question.as_mut_ptr()
    })
}

/// Answers: the first `json` bytes of the question are JSON, what follows are bytes of headers. Says where the answer is.
#[unsafe(no_mangle)]
pub extern "C" fn answer(json: usize) -> *const u8 {
    HELD.with_borrow_mut(|held| {
        let question = std::mem::take(&mut held.question);
        held.answer = held.state.answer(&question, json);
        held.answer.as_ptr()
    })
}

/// The bytes of the last answer.
#[unsafe(no_mangle)]
pub extern "C" fn length() -> usize {
    HELD.with_borrow(|held| held.answer.len())
}
