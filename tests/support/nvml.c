// A driver's library with one card, whose memory is what the file of FAKE_NVML says: total and free, in MiB.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    memory->total = total << 20;
    memory->free = free << 20;
    memory->used = (total - free) << 20;
    memory->reserved = 0;
    return 0;
}
