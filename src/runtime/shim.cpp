// The few C++ parts of llama.cpp that have no C interface, as plain C functions. Checked on llama.cpp b11434.

#include "llama-ext.h"

#include "ggml-backend.h"

#include <cstdio>
#include <cstdlib>
#include <exception>

extern "C" {

// What one buffer type holds, in bytes. The names live as long as the program.
struct moeplan_buffer {
    const char * buffer;
    const char * device; // null where the buffer type belongs to no device
    bool         host;
    size_t       model;
    size_t       context;
    size_t       compute;
};

// Writes at most `capacity` entries and returns how many there are (src/llama-ext.h: llama_get_memory_breakdown).
size_t moeplan_memory_breakdown(const llama_context * ctx, moeplan_buffer * out, size_t capacity) {
    size_t n = 0;
    for (const auto & entry : llama_get_memory_breakdown(ctx)) {
        if (n < capacity) {
            ggml_backend_dev_t device = ggml_backend_buft_get_device(entry.first);
            out[n] = {
                ggml_backend_buft_name(entry.first),
                device ? ggml_backend_dev_name(device) : nullptr,
                ggml_backend_buft_is_host(entry.first),
                entry.second.model,
                entry.second.context,
                entry.second.compute,
            };
        }
        n++;
    }
    return n;
}

// How many devices the model uses, and the i-th of them (src/llama-ext.h).
size_t moeplan_model_devices(const llama_model * model) {
    const int32_t n = llama_model_n_devices(model);
    return n < 0 ? 0 : (size_t) n;
}

ggml_backend_dev_t moeplan_model_device(const llama_model * model, size_t i) {
    return llama_model_get_device(model, (int) i);
}

// Makes the devices of an RPC server known to this process, as `--rpc` does; false where that is not possible.
bool moeplan_rpc_add(const char * endpoint) {
    ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    if (!rpc) {
        return false;
    }
    typedef ggml_backend_reg_t (*add_server_t)(const char *);
    auto add_server = (add_server_t) ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server");
    if (!add_server) {
        return false;
    }
    ggml_backend_reg_t server = add_server(endpoint);
    if (!server) {
        return false;
    }
    ggml_backend_register(server);
    return true;
}

// Serves this computer's processor as an RPC device; returns only when that fails.
void moeplan_rpc_serve(const char * endpoint, size_t n_threads) {
    ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    if (!rpc) {
        fprintf(stderr, "error: this llama.cpp was built without RPC\n");
        return;
    }
    typedef void (*start_server_t)(const char *, const char *, size_t, size_t, ggml_backend_dev_t *);
    auto start_server = (start_server_t) ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_start_server");
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!start_server || !cpu) {
        fprintf(stderr, "error: no RPC server function or no CPU device\n");
        return;
    }
    try {
        start_server(endpoint, nullptr, n_threads, 1, &cpu);
    } catch (const std::exception & error) {
        fprintf(stderr, "error: %s\n", error.what());
    }
}

// Passes on everything but debug lines, on standard error, where the parent process keeps the last of them.
static void moeplan_log(enum ggml_log_level level, const char * text, void *) {
    static thread_local enum ggml_log_level last = GGML_LOG_LEVEL_INFO;
    if (level != GGML_LOG_LEVEL_CONT) {
        last = level;
    }
    if (last != GGML_LOG_LEVEL_DEBUG) {
        fputs(text, stderr);
    }
}

void moeplan_log_to_stderr(void) {
    llama_log_set(moeplan_log, nullptr);
}

// Leaves the process at once, without the destructors of threads that still compute.
void moeplan_exit(int code) {
    fflush(stderr);
    _Exit(code);
}

}
