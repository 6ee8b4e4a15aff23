// A driver's library with one card. The file of FAKE_NVML says its memory and what other programs leave of it, in MiB. As long as the
// fake llama-server lives, it holds HELD of that; the driver does not say which process holds what.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HELD = 900 };

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "999.1"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { (void)index; *device = device; return 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned length) { (void)device; snprintf(text, length, "a card of a test"); return 0; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned length) { (void)device; snprintf(text, length, "GPU-test"); return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    unsigned long long total = 0, free = 0;
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    (void)device;
    if (!file || fscanf(file, "%llu %llu", &total, &free) != 2) { return 999; }
    fclose(file);
    char path[4096];
    int pid = 0;
    snprintf(path, sizeof path, "%s/pid", getenv("FAKE_LLAMA_SERVER_STATE"));
    file = fopen(path, "r");
    if (file && fscanf(file, "%d", &pid) == 1 && kill(pid, 0) == 0) { free -= HELD; }
    if (file) { fclose(file); }
    memory->total = total << 20;
    memory->free = free << 20;
    memory->used = (total - free) << 20;
    memory->reserved = 0;
    return 0;
}
