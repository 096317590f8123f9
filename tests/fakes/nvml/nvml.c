/* A stub libnvidia-ml.so.1 for tests: says what a state file says, read anew at each call.
 *
 * FAKE_NVML_STATE names the file; its lines are
 *   driver VERSION        cuda N                 init CODE        hang_ms N
 *   gpu IDX total_mib used_mib util temp_c power_mw err
 *   proc IDX pid used_mib
 * and FAKE_NVML_STATE.xid, `xid IDX CODE`, fires one event and is removed.
 * Error codes are NVML's: 9 driver not loaded, 15 lost, 16 reset required, 18 version mismatch. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { void *device; u64 type, data; unsigned gpu_instance, compute_instance; } Event;

#define MAX_GPUS 16
#define MAX_PROCS 64
#define MIB (1024ULL * 1024)
#define OK 0
#define INVALID 2
#define NOT_SUPPORTED 3
#define SMALL 7
#define TIMEOUT 10

typedef struct { int there; u64 total, used; int util, temp, power, err; } Gpu;
typedef struct { int gpu; unsigned pid; u64 used; } Proc;
typedef struct {
  char driver[80]; int cuda, init, hang_ms, count, procs;
  Gpu gpu[MAX_GPUS]; Proc proc[MAX_PROCS];
} State;

static State read_state(void) {
  State s; memset(&s, 0, sizeof s);
  strcpy(s.driver, "999.1"); s.cuda = 13000;
  const char *path = getenv("FAKE_NVML_STATE");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[256];
  while (file && fgets(line, sizeof line, file)) {
    int index, util, temp, power, err; u64 a, b; unsigned pid;
    if (sscanf(line, "driver %79s", s.driver) == 1) continue;
    if (sscanf(line, "cuda %d", &s.cuda) == 1) continue;
    if (sscanf(line, "init %d", &s.init) == 1) continue;
    if (sscanf(line, "hang_ms %d", &s.hang_ms) == 1) continue;
    if (sscanf(line, "gpu %d %llu %llu %d %d %d %d", &index, &a, &b, &util, &temp, &power, &err) == 7
        && index >= 0 && index < MAX_GPUS) {
      Gpu g = { 1, a, b, util, temp, power, err };
      s.gpu[index] = g;
      if (index >= s.count) s.count = index + 1;
    } else if (sscanf(line, "proc %d %u %llu", &index, &pid, &a) == 3 && s.procs < MAX_PROCS) {
      Proc p = { index, pid, a };
      s.proc[s.procs++] = p;
    }
  }
  if (file) fclose(file);
  if (s.hang_ms > 0) usleep((useconds_t)s.hang_ms * 1000);
  return s;
}

/* A handle is the address of one of these; its index is the card's. */
static char handles[MAX_GPUS];
static int index_of(void *device) { return (int)((char *)device - handles); }

static int card(void *device, State *s, Gpu *g) {
  int index = index_of(device);
  *s = read_state();
  if (index < 0 || index >= MAX_GPUS || !s->gpu[index].there) return INVALID;
  *g = s->gpu[index];
  return g->err;
}
#define CARD(device) State s; Gpu g; int err = card(device, &s, &g); if (err) return err

int nvmlInitWithFlags(unsigned flags) { (void)flags; return read_state().init; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) {
  switch (code) {
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    case 16: return "GPU requires reset";
    case 18: return "Driver/library version mismatch";
    default: return "fake NVML error";
  }
}
int nvmlSystemGetDriverVersion(char *out, unsigned n) {
  State s = read_state(); snprintf(out, n, "%s", s.driver); return OK;
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = read_state().cuda; return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = (unsigned)read_state().count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
  State s = read_state();
  if (index >= MAX_GPUS || !s.gpu[index].there) return INVALID;
  if (s.gpu[index].err) return s.gpu[index].err;
  *out = &handles[index]; return OK;
}
int nvmlDeviceGetIndex(void *device, unsigned *out) { *out = (unsigned)index_of(device); return OK; }
int nvmlDeviceGetName(void *device, char *out, unsigned n) {
  CARD(device); snprintf(out, n, "Fake GPU"); return OK;
}
int nvmlDeviceGetUUID(void *device, char *out, unsigned n) {
  CARD(device); snprintf(out, n, "GPU-fake-%d", index_of(device)); return OK;
}
int nvmlDeviceGetMemoryInfo(void *device, Memory *m) {
  CARD(device);
  m->total = g.total * MIB; m->used = g.used * MIB; m->free = m->total - m->used; return OK;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, Memory2 *m) {
  CARD(device);
  m->total = g.total * MIB; m->used = g.used * MIB; m->reserved = 0;
  m->free = m->total - m->used; return OK;
}
int nvmlDeviceGetUtilizationRates(void *device, Utilization *u) {
  CARD(device); u->gpu = (unsigned)g.util; u->memory = 0; return OK;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out) {
  (void)sensor; CARD(device); *out = (unsigned)g.temp; return OK;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *out) {
  CARD(device); *out = (unsigned)g.power; return OK;
}
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *out) {
  CARD(device); *out = 300000; return OK;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
  CARD(device); *major = 9; *minor = 0; return OK;
}
int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *pending) {
  (void)now; (void)pending; CARD(device); return NOT_SUPPORTED;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *out) {
  CARD(device);
  unsigned found = 0, room = *count;
  for (int i = 0; i < s.procs; i++) {
    if (s.proc[i].gpu != index_of(device)) continue;
    if (out && found < room) {
      Process p = { s.proc[i].pid, s.proc[i].used * MIB, 0xFFFFFFFF, 0xFFFFFFFF };
      out[found] = p;
    }
    found++;
  }
  *count = found;
  return found > room ? SMALL : OK;
}
int nvmlEventSetCreate(void **set) { static int one; *set = &one; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(void *device, u64 types, void *set) {
  (void)types; (void)set; CARD(device); return OK;
}
int nvmlEventSetWait_v2(void *set, Event *event, unsigned timeout_ms) {
  (void)set; (void)timeout_ms;
  char path[4096]; int index; u64 code;
  const char *state = getenv("FAKE_NVML_STATE");
  snprintf(path, sizeof path, "%s.xid", state ? state : "");
  FILE *file = fopen(path, "r");
  if (!file) return TIMEOUT;
  int read = fscanf(file, "xid %d %llu", &index, &code);
  fclose(file);
  unlink(path);
  if (read != 2 || index < 0 || index >= MAX_GPUS) return TIMEOUT;
  memset(event, 0, sizeof *event);
  event->device = &handles[index]; event->type = 8; event->data = code;
  return OK;
}
