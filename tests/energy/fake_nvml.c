/* NVML's functions that a meter calls, as a shared object. Their answers are in the file named by
   FAKE_NVML, a row a device: UUID, name, millijoules, milliwatts, percent busy, milliwatts of the limit.
   -1: not supported; -2: the device is lost. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
       NOT_FOUND = 6, LOST = 15 };
enum { MOST = 8, UUID, NAME, JOULES, WATTS, BUSY, LIMIT };
static int initialized, calls;
static struct { char uuid[64]; int index; } devices[MOST];

static int field(int index, int which, long long *value, char *text)
{
    char row[512], uuid[64], name[96];
    long long numbers[4];
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    if (!initialized) return UNINITIALIZED;
    if (!file) return LOST;
    while (fgets(row, sizeof row, file) && index-- > 0) {}
    fclose(file);
    if (index >= 0) return NOT_FOUND;
    if (sscanf(row, "%63[^,],%95[^,],%lld,%lld,%lld,%lld", uuid, name, numbers, numbers + 1, numbers + 2,
               numbers + 3) != 6) return NOT_FOUND;
    if (which == UUID || which == NAME) { strcpy(text, which == UUID ? uuid : name); return SUCCESS; }
    *value = numbers[which - JOULES];
    return *value == -1 ? NOT_SUPPORTED : *value == -2 ? LOST : SUCCESS;
}

static int number(void *handle, int which, long long *value)
{
    int index = (int)(((char *)handle - (char *)devices) / sizeof devices[0]);
    calls++;
    return index < 0 || index >= MOST ? INVALID_ARGUMENT : field(index, which, value, NULL);
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; initialized = 1; return SUCCESS; }
int nvmlInit_v2(void) { initialized = 1; return SUCCESS; }
int nvmlShutdown(void) { initialized = 0; return SUCCESS; }
int fakeCalls(void) { return calls; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle)
{
    char text[96];
    int result = index < MOST ? field((int)index, UUID, NULL, text) : NOT_FOUND;
    if (result == SUCCESS) *handle = &devices[index];
    return result;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle)
{
    char text[96];
    for (int index = 0; index < MOST && field(index, UUID, NULL, text) == SUCCESS; index++)
        if (!strcmp(uuid, text)) { *handle = &devices[index]; return SUCCESS; }
    return NOT_FOUND;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length)
{
    char text[96];
    int index = (int)(((char *)handle - (char *)devices) / sizeof devices[0]);
    int result = field(index, NAME, NULL, text);
    if (result == SUCCESS) snprintf(name, length, "%s", text);
    return result;
}

static int small(void *handle, int which, unsigned *value)
{
    long long wide = 0;
    int result = number(handle, which, &wide);
    *value = (unsigned)wide;
    return result;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) { return small(handle, WATTS, milliwatts); }
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *milliwatts) { return small(handle, LIMIT, milliwatts); }

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates)
{
    rates[1] = 0;
    return small(handle, BUSY, rates);
}

const char *nvmlErrorString(int result)
{
    switch (result) {
    case SUCCESS: return "Success";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

/* Power limits. FAKE_NVML_LIMITS names a file with a row a device: UUID, lowest, highest and present limit
   [mW], whether it may be set (1, 0), what the board would draw without a limit [mW], millijoules drawn until
   a moment, and that moment [ns of CLOCK_MONOTONIC]. Then the energy counter runs, at the lower of limit and
   demand, and FAKE_NVML's is not read. Without that file no limit is supported. The clock may be moved by
   hand: fakeClock. */
static long long clock_ns;
void fakeClock(long long nanoseconds) { clock_ns = nanoseconds; }
struct board { char uuid[64]; long long lowest, highest, limit, allowed, demand, drawn, since; };

static int boards_of(void *handle, struct board *boards, int *own)
{
    char uuid[96];
    int count = 0, index = (int)(((char *)handle - (char *)devices) / sizeof devices[0]);
    FILE *file = getenv("FAKE_NVML_LIMITS") ? fopen(getenv("FAKE_NVML_LIMITS"), "r") : NULL;
    *own = -1;
    if (!file) return 0;
    for (struct board *b = boards; count < MOST; b++, count++)
        if (fscanf(file, " %63[^,],%lld,%lld,%lld,%lld,%lld,%lld,%lld", b->uuid, &b->lowest, &b->highest,
                   &b->limit, &b->allowed, &b->demand, &b->drawn, &b->since) != 8) break;
    fclose(file);
    if (field(index, UUID, NULL, uuid) == SUCCESS)
        for (int each = 0; each < count; each++) if (!strcmp(boards[each].uuid, uuid)) *own = each;
    return count;
}

static void draw(struct board *b)
{
    struct timespec now;
    long long at = clock_ns, milliwatts = b->limit < b->demand ? b->limit : b->demand;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!at) at = now.tv_sec * 1000000000LL + now.tv_nsec;
    b->drawn += milliwatts * (at - b->since) / 1000000000LL;
    b->since = at;
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *millijoules)
{
    struct board boards[MOST];
    int own;
    boards_of(handle, boards, &own);
    if (own < 0) return number(handle, JOULES, (long long *)millijoules);
    calls++;
    draw(&boards[own]);
    *millijoules = (unsigned long long)boards[own].drawn;
    return SUCCESS;
}

int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned *lowest, unsigned *highest)
{
    struct board boards[MOST];
    int own;
    boards_of(handle, boards, &own);
    if (own < 0) return NOT_SUPPORTED;
    *lowest = (unsigned)boards[own].lowest;
    *highest = (unsigned)boards[own].highest;
    return SUCCESS;
}

int nvmlDeviceGetPowerManagementLimit(void *handle, unsigned *limit)
{
    struct board boards[MOST];
    int own;
    boards_of(handle, boards, &own);
    if (own < 0) return NOT_SUPPORTED;
    *limit = (unsigned)boards[own].limit;
    return SUCCESS;
}

int nvmlDeviceSetPowerManagementLimit(void *handle, unsigned limit)
{
    const char *path = getenv("FAKE_NVML_LIMITS");
    struct board boards[MOST];
    char part[512];
    int own, count = boards_of(handle, boards, &own);
    if (own < 0) return NOT_SUPPORTED;
    if (!boards[own].allowed) return NO_PERMISSION;
    if (limit < boards[own].lowest || limit > boards[own].highest) return INVALID_ARGUMENT;
    snprintf(part, sizeof part, "%s.lock", path);
    int lock = open(part, O_CREAT | O_RDWR, 0600);
    flock(lock, LOCK_EX); /* another board's limit may be set at the same time */
    count = boards_of(handle, boards, &own);
    draw(&boards[own]);
    boards[own].limit = limit;
    snprintf(part, sizeof part, "%s.part", path);
    FILE *file = fopen(part, "w");
    for (struct board *b = boards; b < boards + count; b++)
        fprintf(file, "%s,%lld,%lld,%lld,%lld,%lld,%lld,%lld\n", b->uuid, b->lowest, b->highest, b->limit,
                b->allowed, b->demand, b->drawn, b->since);
    fclose(file);
    int failed = rename(part, path);
    close(lock);
    return failed ? LOST : SUCCESS;
}
