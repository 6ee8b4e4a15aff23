// What a llama.cpp would hold for launches, in bytes by buffer type: a launch a line of standard input, a line of JSON each.
//
// A launch is `KEY=VALUE` words; moeplan has resolved them as the programs do. Compiles with every build from b9093 on: what came
// since is found by the compiler. Each launch has a process of its own, since one that is refused may end it.

#include "llama.h"

#include "llama-ext.h"

#include "ggml-backend.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#ifdef MOEPLAN_VULKAN
#include <dlfcn.h>
#include <vulkan/vulkan.h>

// Mesa's software device takes tensors of 128 MiB; this one takes what cards take, all that 32 bits can index.
static PFN_vkGetPhysicalDeviceProperties2 properties;
static void properties_of_cards(VkPhysicalDevice device, VkPhysicalDeviceProperties2 * found) {
    properties(device, found);
    found->properties.limits.maxStorageBufferRange = UINT32_MAX;
}
extern "C" PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance, const char * name) {
    static const auto next = (PFN_vkGetInstanceProcAddr) dlsym(RTLD_NEXT, "vkGetInstanceProcAddr");
    const auto found = next(instance, name);
    if (!found || strcmp(name, "vkGetPhysicalDeviceProperties2") != 0) {
        return found;
    }
    properties = (PFN_vkGetPhysicalDeviceProperties2) found;
    return (PFN_vkVoidFunction) properties_of_cards;
}
#endif

typedef std::map<std::string, std::string> launch;

// Nothing is mapped: by `use_mmap`, later by `load_mode`, whose 0 is none.
template <typename T> auto read_whole(T & params, int) -> decltype((void) params.load_mode) {
    params.load_mode = static_cast<decltype(params.load_mode)>(0);
}
template <typename T> void read_whole(T & params, long) {
    params.use_mmap = false;
}

template <typename T> auto set_outputs(T & params, uint32_t n, int) -> decltype((void) params.n_outputs_max) {
    params.n_outputs_max = n;
}
template <typename T> void set_outputs(T &, uint32_t, long) {}

template <typename T> auto set_outputs_per_seq(T & params, int) -> decltype((void) params.n_outputs_max_per_seq) {
    params.n_outputs_max_per_seq = 1;
}
template <typename T> void set_outputs_per_seq(T &, long) {}

static std::vector<std::string> split(const std::string & text, char separator) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);) {
        parts.push_back(part);
    }
    return parts;
}

static ggml_type type_of(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const char * known = ggml_type_name((ggml_type) i);
        if (known && name == known) {
            return (ggml_type) i;
        }
    }
    abort();
}

static void add_server(const std::string & endpoint) {
    typedef ggml_backend_reg_t (*add_t)(const char *);
    auto add = (add_t) ggml_backend_reg_get_proc_address(ggml_backend_reg_by_name("RPC"), "ggml_backend_rpc_add_server");
    ggml_backend_register(add(endpoint.c_str()));
}

static int project(launch words) {
    auto number = [&](const char * key) { return atol(words[key].c_str()); };
    ggml_backend_load_all();
    std::vector<ggml_backend_dev_t> devices;
    for (const auto & endpoint : split(words["rpc"], ',')) {
        add_server(endpoint);
    }
    std::map<std::string, ggml_backend_buffer_type_t> buffers = { { "CPU", ggml_backend_cpu_buffer_type() } };
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const bool is_wanted = devices.size() < (size_t) number("devices");
        if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU && is_wanted) {
            devices.push_back(device);
            buffers[ggml_backend_dev_name(device)] = ggml_backend_dev_buffer_type(device);
        }
    }
    devices.push_back(nullptr);

    auto mparams = llama_model_default_params();
    mparams.no_alloc = true;
    mparams.devices = devices.data();
    mparams.n_gpu_layers = number("ngl");
    mparams.use_extra_bufts = number("repack");
    read_whole(mparams, 0);
    std::vector<float> shares(16);
    const auto given = split(words["ts"], ',');
    for (size_t i = 0; i < given.size(); i++) {
        shares[i] = std::stof(given[i]);
    }
    mparams.tensor_split = given.empty() ? nullptr : shares.data();
    const auto rules = split(words["ot"], ';');
    std::vector<std::string> patterns;
    std::vector<llama_model_tensor_buft_override> overrides;
    for (const auto & rule : rules) {
        patterns.push_back(rule.substr(0, rule.rfind('=')));
    }
    for (size_t i = 0; i < rules.size(); i++) {
        overrides.push_back({ patterns[i].c_str(), buffers.at(rules[i].substr(rules[i].rfind('=') + 1)) });
    }
    overrides.push_back({ nullptr, nullptr });
    if (!rules.empty()) {
        mparams.tensor_buft_overrides = overrides.data();
    }

    // The headers' tokenizer is one that older builds do not know.
    std::vector<llama_model_kv_override> keys(2);
    keys[0].tag = LLAMA_KV_OVERRIDE_TYPE_STR;
    snprintf(keys[0].key, sizeof(keys[0].key), "tokenizer.ggml.model");
    snprintf(keys[0].val_str, sizeof(keys[0].val_str), "none");
    keys[1].key[0] = 0;
    mparams.kv_overrides = keys.data();

    auto cparams = llama_context_default_params();
    cparams.n_ctx = number("c");
    cparams.n_batch = number("b");
    cparams.n_ubatch = number("ub");
    cparams.n_seq_max = number("np");
    cparams.kv_unified = number("kvu");
    cparams.flash_attn_type = (llama_flash_attn_type) number("fa");
    cparams.type_k = type_of(words["ctk"]);
    cparams.type_v = type_of(words["ctv"]);
    cparams.offload_kqv = number("kqv");
    cparams.op_offload = number("offload");
    cparams.swa_full = number("swa");
    cparams.n_threads = 1;
    cparams.n_threads_batch = 1;
    set_outputs(cparams, number("outputs"), 0);
    set_outputs_per_seq(cparams, 0);

    llama_model * model = llama_model_load_from_file(words["m"].c_str(), mparams);
    llama_context * context = model ? llama_init_from_model(model, cparams) : nullptr;
    if (!context) {
        return 1;
    }
    // Buffers of the host are summed up; types that llama.cpp lists apart keep their names.
    std::map<std::string, std::vector<size_t>> rows;
    for (const auto & entry : llama_get_memory_breakdown(context)) {
        ggml_backend_dev_t device = ggml_backend_buft_get_device(entry.first);
        const bool is_host = !device || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
        const char * key = ggml_backend_buft_is_host(entry.first) ? "Host" :
            is_host ? ggml_backend_buft_name(entry.first) : ggml_backend_dev_name(device);
        auto & row = rows[key];
        row.resize(3);
        const size_t terms[] = { entry.second.model, entry.second.context, entry.second.compute };
        for (size_t i = 0; i < 3; i++) {
            row[i] += terms[i];
        }
    }
    printf("{");
    const char * before = "";
    for (const auto & row : rows) {
        printf("%s\"%s\":{\"model\":%zu,\"context\":%zu,\"compute\":%zu}", before, row.first.c_str(), row.second[0],
            row.second[1], row.second[2]);
        before = ",";
    }
    printf("}\n");
    fflush(stdout);
    return 0;
}

int main() {
    if (!getenv("ORACLE_LOG")) {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    }
    for (std::string line; std::getline(std::cin, line);) {
        launch words;
        for (const auto & word : split(line, ' ')) {
            const size_t at = word.find('=');
            words[word.substr(0, at)] = word.substr(at + 1);
        }
        const pid_t child = fork();
        if (child == 0) {
            _Exit(project(words));
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            printf(WIFEXITED(status) ? "null\n" : "\"died\"\n");
            fflush(stdout);
        }
    }
    return 0;
}
