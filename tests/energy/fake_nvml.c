/* NVML's functions that a meter calls, as a shared object. Their answers are in the file named by
   FAKE_NVML, a row a device: UUID, name, millijoules, milliwatts, percent busy, milliwatts of the limit.
   -1: not supported; -2: the device is lost. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, LOST = 15 };
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

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *millijoules)
{
    return number(handle, JOULES, (long long *)millijoules);
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
    case NOT_FOUND: return "Not Found";
    case LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}
