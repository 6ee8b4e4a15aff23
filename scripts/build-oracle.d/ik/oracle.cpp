// What an ik_llama.cpp would hold for launches, in bytes by device: a launch a line of standard input, a line of JSON each.
//
// A launch is the memory of each device in bytes (`0` for none), then the words of its llama-server. The devices hold nothing and
// compute nothing; sizes and rules are those of the fork's CUDA backend. Each launch has a process of its own.

// Both it and `llama-arch.h` have these names.
#define LLM_KV_SPLIT_NO common_split_no
#define LLM_KV_SPLIT_COUNT common_split_count
#define LLM_KV_SPLIT_TENSORS_COUNT common_split_tensors_count
#include "common.h"
#undef LLM_KV_SPLIT_NO
#undef LLM_KV_SPLIT_COUNT
#undef LLM_KV_SPLIT_TENSORS_COUNT

#include "ggml-backend-impl.h"
#include "ggml-cuda.h"
#include "llama-context.h"
#include "llama-model.h"
#include "llama.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

static std::vector<size_t> devices;
// Where answers go: the library itself writes to standard output.
static int answers;

// Devices

struct ggml_backend_cuda_context {
    int device;
    int offload_batch_size = 32;
    int offload_batch_size_per_byte = -1;
};

static std::vector<ggml_backend_buffer_type> & types();

static int device_of(ggml_backend_buffer_type_t buft) {
    return buft - types().data();
}
static const char * name_of(int device) {
    static std::vector<std::string> names(GGML_CUDA_MAX_DEVICES);
    names[device] = "CUDA" + std::to_string(device);
    return names[device].c_str();
}
static void * reserve(size_t size) {
    return mmap(nullptr, std::max<size_t>(size, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static const ggml_backend_buffer_i buffer_interface = {
    [](ggml_backend_buffer_t buffer) { return name_of(device_of(buffer->buft)); },
    [](ggml_backend_buffer_t buffer) { munmap(buffer->context, std::max<size_t>(buffer->size, 1)); },
    [](ggml_backend_buffer_t buffer) { return buffer->context; },
    nullptr,
    [](ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {},
    [](ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {},
    [](ggml_backend_buffer_t, const ggml_tensor *, void * data, size_t, size_t size) { memset(data, 0, size); },
    [](ggml_backend_buffer_t, const ggml_tensor *, ggml_tensor *) { return true; },
    [](ggml_backend_buffer_t, uint8_t) {},
    nullptr,
};

static std::vector<ggml_backend_buffer_type> & types() {
    static std::vector<ggml_backend_buffer_type> all(GGML_CUDA_MAX_DEVICES);
    for (auto & type : all) {
        type.iface = {
            [](ggml_backend_buffer_type_t buft) { return name_of(device_of(buft)); },
            [](ggml_backend_buffer_type_t buft, size_t size) {
                return ggml_backend_buffer_init(buft, buffer_interface, reserve(size), size);
            },
            [](ggml_backend_buffer_type_t) -> size_t { return 128; },
            nullptr,
            // Rows of quantized tensors are filled up to 512 (MATRIX_ROW_PADDING).
            [](ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
                const int64_t over = tensor->ne[0] % 512;
                const bool is_padded = ggml_is_quantized(tensor->type) && over != 0;
                return ggml_nbytes(tensor) + (is_padded ? ggml_row_size(tensor->type, 512 - over) : 0);
            },
            nullptr,
        };
    }
    return all;
}

static bool ggml_backend_buft_is_cuda_split(ggml_backend_buffer_type_t) {
    return false;
}
// `fattn.cu`, of a card with the newest kernels.
static bool ggml_cuda_fattn_is_supported(ggml_backend_cuda_context &, const ggml_tensor * op) {
    const int64_t k = op->src[1]->ne[0];
    if (k == 576 || k == 512 || k == 320) {
        return op->src[0]->ne[2] / op->src[1]->ne[2] % 4 == 0;
    }
    // Small models have smaller heads than any kernel; they stand for those of real size.
    return true;
}
#define WARP_SIZE 32
#include "offload_op.inc"
#include "supports_op.inc"

static ggml_guid guid = { 1 };

extern "C" {
ggml_backend_t ggml_backend_cuda_init(int device, const void *, const void *) {
    static const ggml_backend_i interface = {
        [](ggml_backend_t backend) { return name_of(((ggml_backend_cuda_context *) backend->context)->device); },
        [](ggml_backend_t) {},
        [](ggml_backend_t backend) { return ggml_backend_cuda_buffer_type(((ggml_backend_cuda_context *) backend->context)->device); },
        nullptr, nullptr, nullptr,
        [](ggml_backend_t) {},
        nullptr, nullptr, nullptr, nullptr,
        [](ggml_backend_t, ggml_cgraph *) { return GGML_STATUS_SUCCESS; },
        ggml_backend_cuda_supports_op,
        [](ggml_backend_t backend, ggml_backend_buffer_type_t buft) {
            return buft == ggml_backend_cuda_buffer_type(((ggml_backend_cuda_context *) backend->context)->device);
        },
        ggml_backend_cuda_offload_op,
        [](ggml_backend_t backend) { return new ggml_backend_event{ backend, nullptr }; },
        [](ggml_backend_event_t event) { delete event; },
        [](ggml_backend_event_t) {},
        [](ggml_backend_t, ggml_backend_event_t) {},
        [](ggml_backend_event_t) {},
    };
    return new ggml_backend{ &guid, interface, new ggml_backend_cuda_context{ device } };
}
bool ggml_backend_is_cuda(ggml_backend_t backend) {
    return backend && backend->guid == &guid;
}
ggml_backend_buffer_type_t ggml_backend_cuda_buffer_type(int device) {
    static auto & all = types();
    return &all[device];
}
ggml_backend_buffer_type_t ggml_backend_cuda_split_buffer_type(const float *) {
    return nullptr;
}
ggml_backend_buffer_type_t ggml_backend_cuda_host_buffer_type(void) {
    static ggml_backend_buffer_type type = [] {
        auto host = *ggml_backend_cpu_buffer_type();
        host.iface.get_name = [](ggml_backend_buffer_type_t) { return "CUDA_Host"; };
        host.iface.alloc_buffer = [](ggml_backend_buffer_type_t buft, size_t size) {
            auto buffer = ggml_backend_cpu_buffer_from_ptr(reserve(size), size);
            buffer->buft = buft;
            return buffer;
        };
        return host;
    }();
    return &type;
}
int ggml_backend_cuda_get_device_count(void) {
    return devices.size();
}
void ggml_backend_cuda_get_device_description(int, char * text, size_t size) {
    snprintf(text, size, "a device that holds nothing");
}
void ggml_backend_cuda_get_device_memory(int device, size_t * free, size_t * total) {
    *free = *total = devices[device];
}
bool ggml_backend_cuda_register_host_buffer(void *, size_t) {
    return false;
}
void ggml_backend_cuda_unregister_host_buffer(void *) {}
void ggml_backend_cuda_log_set_callback(ggml_log_callback, void *) {}
void ggml_backend_cuda_invalidate_graphs(const void *) {}
void ggml_backend_cuda_reg_devices(void) {
    for (size_t i = 0; i < devices.size(); i++) {
        ggml_backend_register(
            name_of(i), [](const char *, void * device) { return ggml_backend_cuda_init((intptr_t) device, nullptr, nullptr); },
            ggml_backend_cuda_buffer_type(i), (void *) (intptr_t) i);
    }
}
}

// Its attention on the processor takes long to compile, and nothing is computed.
extern "C" bool iqk_flash_attn_noalibi() {
    return false;
}
extern "C" size_t iqk_fa_work_buffer_size() {
    return 0;
}

// Launches

static int hold(std::vector<std::string> words) {
    gpt_params params;
    // Defaults of its server.
    params.n_batch = 2048;
    std::vector<char *> arguments;
    for (auto & word : words) {
        arguments.push_back(word.data());
    }
    if (!gpt_params_parse(arguments.size(), arguments.data(), params)) {
        return 1;
    }
    params.warmup = false;
    params.use_mmap = false;
    llama_init_result made = llama_init_from_gpt_params(params);
    if (!made.context) {
        return 1;
    }
    std::map<std::string, std::array<size_t, 4>> rows;
    const auto add = [&](ggml_backend_buffer_type_t buft, int term, size_t size) {
        rows[ggml_backend_buft_is_host(buft) ? "Host" : ggml_backend_buft_name(buft)][term] += size;
    };
    const auto add_buffer = [&](ggml_backend_buffer_t buffer, int term) {
        add(ggml_backend_buffer_get_type(buffer), term, ggml_backend_buffer_get_size(buffer));
    };
    for (const auto & buffer : made.model->bufs) {
        add_buffer(buffer, 0);
    }
    // Weights that it computes from others lie apart, and no line of its log counts them.
    for (const auto & layer : made.model->layers) {
        for (const auto * weight : { layer.computed_wk_b.get(), layer.computed_wv_b.get(), layer.computed_wkv_b.get() }) {
            if (weight && weight->buffer) {
                add_buffer(weight->buffer, 3);
            }
        }
    }
    for (const auto & buffer : made.context->kv_self.bufs) {
        add_buffer(buffer, 1);
    }
    for (auto * backend : made.context->backends) {
        const bool is_host = ggml_backend_is_cpu(backend);
        const auto buft = is_host ? ggml_backend_cuda_host_buffer_type() : ggml_backend_get_default_buffer_type(backend);
        add(buft, 2, ggml_backend_sched_get_buffer_size(made.context->sched, backend));
    }
    dprintf(answers, "{");
    const char * before = "";
    for (const auto & row : rows) {
        dprintf(answers, "%s\"%s\":{\"model\":%zu,\"context\":%zu,\"compute\":%zu,\"overhead\":%zu}", before, row.first.c_str(),
            row.second[0], row.second[1], row.second[2], row.second[3]);
        before = ",";
    }
    dprintf(answers, "}\n");
    return 0;
}

int main() {
    answers = dup(STDOUT_FILENO);
    dup2(STDERR_FILENO, STDOUT_FILENO);
    log_disable();
    if (!getenv("ORACLE_LOG")) {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    }
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream stream(line);
        std::string sizes;
        stream >> sizes;
        devices.clear();
        std::istringstream list(sizes);
        for (std::string size; std::getline(list, size, ',');) {
            if (size != "0") {
                devices.push_back(std::stoull(size));
            }
        }
        std::vector<std::string> words;
        for (std::string word; stream >> word;) {
            words.push_back(word);
        }
        const pid_t child = fork();
        if (child == 0) {
            int status = 1;
            try {
                status = hold(words);
            } catch (const std::exception & error) {
                fprintf(stderr, "%s\n", error.what());
            }
            fflush(stdout);
            _Exit(status);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            dprintf(answers, WIFEXITED(status) ? "null\n" : "\"died\"\n");
        }
    }
    return 0;
}
