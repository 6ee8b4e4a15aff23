//! Servers that misbehave, one test a way.

use super::http_server::{Answer, Request, Server};
use super::*;

fn good(request: &Request) -> Answer {
    Answer::range(request, &model(), "\"e\"")
}

#[test]
fn a_server_without_ranges_is_read_from_the_start_and_left_early() {
    let server = Server::new(|_| Answer::status(200).body([model(), vec![0; 32 << 20]].concat()));
    let (client, events) = watched(client());
    is_model(&open(&client, &server.url("/m.gguf")));
    let most = header_bytes() + limits().step;
    assert!(client.moved() <= most, "{} of {most}", client.moved());
    assert_eq!(server.paths().len(), 1, "one answer, read in steps");
    let said = events.lock().unwrap().iter().filter(|event| matches!(event, Event::NoRanges(_))).count();
    assert_eq!(said, 1, "and a person is told");
}

#[test]
fn a_server_without_ranges_that_drops_is_asked_from_the_start() {
    let server = Server::new(|request| {
        let answer = Answer::status(200).body(model());
        if request.earlier == 0 { Answer { cut: Some(9000), ..answer } } else { answer }
    });
    is_model(&open(&client(), &server.url("/m.gguf")));
    assert_eq!(server.paths().len(), 2);
}

#[test]
fn a_range_other_than_asked_for_is_refused() {
    for wrong in [
        "bytes 1-4096/200000",
        "bytes 0-999999/200000",
        "bytes 5-2/9",
        "items 0-4/9",
        "bytes */9",
        "bytes 0-4095/4000",
        "",
    ] {
        let server = Server::new(move |_| Answer::status(206).header("Content-Range", wrong).body(&model()[..4096]));
        let (failure, hint) = failure(open(&client(), &server.url("/m.gguf")));
        assert!(matches!(failure, Failure::Range { asked: 0, .. }), "{wrong}: {failure}");
        assert!(!hint.is_empty());
    }
}

#[test]
fn a_shorter_range_than_asked_for_is_fine() {
    let server = Server::new(|request| {
        let (first, last) = request.range().unwrap();
        let last = last.min(first + 1999);
        Answer::status(206)
            .header("Content-Range", format!("bytes {first}-{last}/{}", model().len()))
            .body(&model()[first..=last])
    });
    is_model(&open(&client(), &server.url("/m.gguf")));
}

#[test]
fn a_broken_connection_is_resumed_where_it_broke() {
    let server = Server::new(|request| {
        let cut = if request.earlier.is_multiple_of(2) { Some(1500) } else { None };
        Answer { cut, ..good(request) }
    });
    let client = client();
    is_model(&open(&client, &server.url("/m.gguf")));
    assert!(client.moved() <= header_bytes() + limits().step, "nothing is asked for twice: {}", client.moved());
    let firsts: Vec<usize> = server.requests.lock().unwrap().iter().map(|request| request.range().unwrap().0).collect();
    assert!(firsts.windows(2).all(|pair| pair[0] < pair[1]) && firsts[1] == 1500, "{firsts:?}");
}

#[test]
fn a_slow_connection_is_resumed_when_time_is_up() {
    let server = Server::new(|request| {
        let stall = (request.earlier == 0).then_some(1500);
        Answer { stall, ..good(request) }
    });
    let limits = Limits { body: Duration::from_secs(2), ..limits() };
    let client = Client::new(limits, None, "http://127.0.0.1:9", None).unwrap();
    is_model(&open(&client, &server.url("/m.gguf")));
    assert_eq!(server.requests.lock().unwrap()[1].range().unwrap().0, 1500);
}

#[test]
fn a_server_that_hangs_up_is_asked_three_times() {
    let server = Server::new(|_| Answer { hang_up: true, ..Answer::default() });
    let (client, events) = watched(client());
    let (failure, hint) = failure(open(&client, &server.url("/m.gguf")));
    assert!(matches!(failure, Failure::Io(_) | Failure::Protocol(_) | Failure::Dropped { .. }), "{failure:?}");
    assert!(server.paths().len() >= 3 && server.paths().len() <= 6, "{:?}", server.paths());
    assert_eq!(events.lock().unwrap().len(), 2, "two more tries are announced");
    assert!(hint.contains("network") || matches!(failure, Failure::Protocol(_)), "{hint}");
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let server = Server::new(|_| {
        std::thread::sleep(Duration::from_mins(5));
        Answer::status(200)
    });
    let limits = Limits { response: Duration::from_millis(100), read: Duration::from_millis(100), ..limits() };
    let client = Client::new(limits, None, "http://127.0.0.1:9", None).unwrap();
    assert!(matches!(failure(open(&client, &server.url("/m.gguf"))).0, Failure::Timeout));
}

#[test]
fn a_drip_of_single_bytes_ends_after_so_many_requests() {
    let server = Server::new(|request| Answer { cut: Some(1), ..good(request) });
    let limits = Limits { requests: 12, ..limits() };
    let client = Client::new(Limits { backoff: Duration::ZERO, ..limits }, None, "http://127.0.0.1:9", None).unwrap();
    assert!(matches!(failure(open(&client, &server.url("/m.gguf"))).0, Failure::Requests(12)));
}

#[test]
fn a_redirect_loop_ends() {
    let server = Server::new(|_| Answer::redirect("/m.gguf"));
    assert!(matches!(failure(open(&client(), &server.url("/m.gguf"))).0, Failure::Redirects(10)));
    assert_eq!(server.paths().len(), 11);
}

#[test]
fn a_redirect_to_another_scheme_is_refused() {
    for location in ["file:///etc/passwd", "ftp://h/x", "gopher://x", "https://user:pass@h/x", ""] {
        let server = Server::new(move |request| match request.earlier {
            0 => Answer::redirect(location),
            _ => Answer::status(404),
        });
        let (failure, _) = failure(open(&client(), &server.url("/m.gguf")));
        let refused = matches!(failure, Failure::Address(_)) || (location.is_empty());
        assert!(refused, "{location}: {failure}");
    }
}

#[test]
fn refusals_say_what_to_do_and_are_not_repeated() {
    for (code, words) in [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "check owner"), (410, "")] {
        let server = Server::new(move |_| Answer::status(code));
        let client = Client::new(limits(), None, &server.address, None).unwrap();
        let (failure, hint) = failure(open(&client, &server.url("/m.gguf")));
        assert!(matches!(failure, Failure::Status { code: found, .. } if found == code), "{failure}");
        assert!(hint.contains(words), "{code}: {hint}");
        assert_eq!(server.paths().len(), 1);
    }
    let server = Server::new(|_| Answer::status(403));
    let client = Client::new(limits(), None, &server.address, Some("hf_x".into())).unwrap();
    assert!(failure(open(&client, &server.url("/m.gguf"))).1.contains("accept the model's terms"));
}

#[test]
fn busy_and_broken_servers_are_asked_again() {
    for code in [429, 500, 502, 503, 504] {
        let server = Server::new(move |request| match request.earlier {
            0 => Answer::status(code).header("Retry-After", "0"),
            1 => Answer::status(code),
            _ => good(request),
        });
        is_model(&open(&client(), &server.url("/m.gguf")));
    }
    let server = Server::new(|_| Answer::status(429).header("Retry-After", "86400"));
    assert!(matches!(failure(open(&client(), &server.url("/m.gguf"))).0, Failure::Status { code: 429, .. }));
    assert_eq!(server.paths().len(), 1, "a wait of a day is not waited for");
}

#[test]
fn compressed_bytes_are_refused() {
    let server = Server::new(|request| good(request).header("Content-Encoding", "gzip"));
    assert!(matches!(failure(open(&client(), &server.url("/m.gguf"))).0, Failure::Encoding(_)));
}

#[test]
fn a_web_page_is_no_model() {
    let page = |kind: &'static str| {
        Server::new(move |_| Answer::status(200).header("Content-Type", kind).body("<!DOCTYPE html><p>Sign in"))
    };
    let said = page("text/html; charset=utf-8");
    let (found, hint) = failure(open(&client(), &said.url("/o/r/blob/main/m.gguf")));
    assert!(matches!(found, Failure::Page) && hint.contains("/resolve/"), "{found}: {hint}");
    let silent = page("application/octet-stream");
    let error = open(&client(), &silent.url("/m.gguf")).unwrap_err();
    assert!(error.hint().unwrap().contains("web page"), "{error}");
}

#[test]
fn a_huge_length_allocates_nothing() {
    let server = Server::new(|_| Answer { length: Some(u64::MAX / 4), ..Answer::status(200).body(model()) });
    is_model(&open(&client(), &server.url("/m.gguf")));
    let server = Server::new(|request| {
        let (first, last) = request.range().unwrap();
        let last = last.min(model().len() - 1);
        Answer::status(206)
            .header("Content-Range", format!("bytes {first}-{last}/{}", u64::MAX))
            .body(&model()[first..=last])
    });
    is_model(&open(&client(), &server.url("/m.gguf")));
}

#[test]
fn a_file_shorter_than_its_tensors_is_told() {
    let server = Server::of_files(vec![("/m.gguf".into(), model()[..model().len() - 4096].to_vec())]);
    let error = open(&client(), &server.url("/m.gguf")).unwrap_err();
    assert!(error.to_string().contains("bytes of tensor data are missing"), "{error}");
    let server = Server::of_files(vec![("/m.gguf".into(), model()[..20_000].to_vec())]);
    let error = open(&client(), &server.url("/m.gguf")).unwrap_err();
    assert!(matches!(error, Error::Gguf(_)), "{error}");
}

#[test]
fn a_length_that_is_not_said_is_what_the_tensors_need() {
    let server = Server::new(|request| {
        let (first, last) = request.range().unwrap();
        Answer::status(206).header("Content-Range", format!("bytes {first}-{last}/*")).body(&model()[first..=last])
    });
    let gguf = open(&client(), &server.url("/m.gguf")).unwrap();
    assert_eq!(gguf.files[0].bytes.0, model().len() as u64);
}

#[test]
fn a_file_that_changes_between_windows_is_read_again() {
    let server = Server::new(|request| match request.earlier {
        0 => good(request),
        _ => Answer::range(request, &model(), "\"other\""),
    });
    is_model(&open(&client(), &server.url("/m.gguf")));
    // One that ignores If-Range and only shows another tag.
    let server = Server::new(|request| {
        let mut request = request.clone();
        request.headers.remove("if-range");
        Answer::range(&request, &model(), &format!("\"{}\"", request.earlier.min(1)))
    });
    is_model(&open(&client(), &server.url("/m.gguf")));
}

#[test]
fn a_file_that_always_changes_is_given_up() {
    let server = Server::new(|request| Answer::range(request, &model(), &format!("\"{}\"", request.earlier)));
    let (failure, hint) = failure(open(&client(), &server.url("/m.gguf")));
    assert!(matches!(failure, Failure::Changed) && hint.contains("upload"), "{failure}");
    assert!(server.paths().len() <= 6);
}

#[test]
fn an_endless_body_is_left_after_the_window() {
    let server = Server::new(|request| Answer { endless: true, ..good(request) });
    let client = client();
    is_model(&open(&client, &server.url("/m.gguf")));
    assert!(client.moved() <= header_bytes() + limits().step, "{}", client.moved());
}

#[test]
fn an_endless_header_ends_at_the_bound() {
    // An array of a thousand million empty texts: zeros without end.
    let head = Builder::small().key("tokenizer.ggml.tokens", V::Raw(9, [8_u32.to_le_bytes(), [0; 4]].concat()));
    let mut head = head.key_count(100).header();
    let at = head.windows(21).position(|part| part == b"tokenizer.ggml.tokens").unwrap() + 21 + 4 + 4;
    head.truncate(at);
    head.extend((1_u64 << 29).to_le_bytes());
    let server = Server::new(move |_| Answer { endless: true, ..Answer::status(200).body(head.clone()) });
    let limits = Limits { header: 1 << 20, ..limits() };
    let client = Client::new(limits, None, "http://127.0.0.1:9", None).unwrap();
    assert!(matches!(failure(open(&client, &server.url("/m.gguf"))).0, Failure::TooLong(_)));
    assert!(client.moved() <= 1 << 20, "{}", client.moved());
}

/// Bytes that are no answer of HTTP.
fn raw(bytes: &[u8]) -> Answer {
    Answer { raw: Some(bytes.to_vec()), ..Answer::default() }
}

#[test]
fn an_answer_that_is_no_http_is_told() {
    let heads: [&[u8]; 6] = [
        b"GGUF\x03\0\0\0\0\0\0\0",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 999999 X\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Range bytes 0-1/2\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 206 X\r\nContent-Length: -1\r\n\r\nhello",
    ];
    for head in heads {
        let server = Server::new(move |_| raw(head));
        let (failure, _) = failure(open(&client(), &server.url("/m.gguf")));
        let told = matches!(
            failure,
            Failure::Protocol(_) | Failure::Io(_) | Failure::Dropped { .. } | Failure::Range { .. } | Failure::Timeout
        );
        assert!(told && !failure.to_string().contains('\n'), "{}: {failure:?}", String::from_utf8_lossy(head));
    }
}

#[test]
fn a_head_without_end_is_refused() {
    let line = format!("X-{}: {}\r\n", "a".repeat(100), "b".repeat(900));
    let endless = format!("HTTP/1.1 206 X\r\n{}", line.repeat(2000));
    let server = Server::new(move |_| raw(endless.as_bytes()));
    let client = client();
    let (failure, _) = failure(open(&client, &server.url("/m.gguf")));
    assert!(matches!(failure, Failure::Protocol(_) | Failure::Io(_)), "{failure:?}");
    assert_eq!(client.moved(), 0);
}

#[test]
fn an_answer_in_chunks_is_read_and_one_with_a_bad_chunk_is_asked_for_again() {
    let chunked = |bytes: &[u8], size: &str| {
        let head = "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nTransfer-Encoding: chunked\r\n\r\n";
        [head.as_bytes(), size.as_bytes(), b"\r\n", bytes, b"\r\n0\r\n\r\n"].concat()
    };
    let server = Server::new(move |request| {
        let file = model();
        let size = format!("{:x}", file.len());
        raw(&chunked(&file, if request.earlier == 0 { "zz" } else { &size }))
    });
    is_model(&open(&client(), &server.url("/m.gguf")));
    assert_eq!(server.paths().len(), 2);
}

#[test]
fn tls_to_a_server_without_it_and_a_closed_port_are_told_apart() {
    let server = Server::new(good);
    let tls = failure(open(&client(), &server.address.replace("http:", "https:"))).0;
    assert!(matches!(tls, Failure::Tls(_) | Failure::Io(_)), "{tls:?}");
    let closed = failure(open(&client(), "http://127.0.0.1:1/m.gguf"));
    assert!(matches!(closed.0, Failure::Io(_)) && closed.1.contains("network"), "{:?}", closed.0);
}

#[test]
fn a_shard_name_cannot_lead_elsewhere() {
    let shard = Builder::small().shard(0, 2, 4).build();
    for path in ["/..%2f..%2fm-00001-of-00002.gguf", "/a%5Cm-00001-of-00002.gguf"] {
        let server = Server::of_files(vec![(path.into(), shard.clone())]);
        assert!(open(&client(), &server.url(path)).is_err(), "{path}");
        assert_eq!(server.paths().len(), 1, "no second address is made from it");
    }
    let beyond = Builder::small().shard(4, 3, 4).build();
    let server = Server::of_files(vec![("/m-00005-of-00003.gguf".into(), beyond)]);
    assert!(open(&client(), &server.url("/m-00005-of-00003.gguf")).is_err());
}
