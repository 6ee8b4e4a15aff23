//! Running llama.cpp: the embedded engine in a child process. [I/O]
