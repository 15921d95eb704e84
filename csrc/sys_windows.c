/* sys_windows.c: sys.h on Windows: clock, pages, guards, threads.
 *
 * Memory is committed when it is reserved.  It is not resident before it is touched, but each stack counts in full towards
 * the system's commit limit; only a stack that commits its pages as it grows would not (PAGE_GUARD, by way of the bounds in
 * the TEB, which asm_amd64_windows.S keeps true).
 */
#if defined(_WIN32)
#include "sys.h"

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <process.h>
#include <stdio.h>
#include <tlhelp32.h>

#ifndef CREATE_WAITABLE_TIMER_HIGH_RESOLUTION
#define CREATE_WAITABLE_TIMER_HIGH_RESOLUTION 2
#endif

/* ---- clock ---- */

int64_t
nanotime(void)
{
    static int64_t frequency; /* every thread finds the same */
    int64_t f = atomic_load_relaxed(&frequency);
    LARGE_INTEGER n;

    if (GMP_UNLIKELY(f == 0)) {
        QueryPerformanceFrequency(&n);
        f = n.QuadPart;
        atomic_store_relaxed(&frequency, f);
    }
    QueryPerformanceCounter(&n);
    return n.QuadPart / f * 1000000000 + n.QuadPart % f * 1000000000 / f;
}

/* ---- pages ---- */

size_t
sys_page_size(void)
{
    static size_t page; /* every thread finds the same */
    size_t n = atomic_load_relaxed(&page);

    if (GMP_UNLIKELY(n == 0)) {
        SYSTEM_INFO info;
        GetSystemInfo(&info);
        n = info.dwPageSize;
        atomic_store_relaxed(&page, n);
    }
    return n;
}

void *
sys_reserve(size_t bytes)
{
    return VirtualAlloc(NULL, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

/* A reservation goes back only as a whole: when the last of it is released. */
void
sys_release(void *addr, size_t bytes)
{
    MEMORY_BASIC_INFORMATION info;
    void *base;
    char *at;

    if (VirtualQuery(addr, &info, sizeof(info)) == 0)
        return;
    base = info.AllocationBase;
    VirtualFree(addr, bytes, MEM_DECOMMIT);
    for (at = base; VirtualQuery(at, &info, sizeof(info)) != 0 && info.AllocationBase == base; at += info.RegionSize)
        if (info.State != MEM_RESERVE)
            return;
    VirtualFree(base, 0, MEM_RELEASE);
}

bool
sys_protect(void *addr, size_t bytes)
{
    DWORD old;

    return VirtualProtect(addr, bytes, PAGE_NOACCESS, &old);
}

void
sys_discard(void *addr, size_t bytes)
{
    GMP_CHECK(VirtualFree(addr, bytes, MEM_DECOMMIT));
    GMP_CHECK(VirtualAlloc(addr, bytes, MEM_COMMIT, PAGE_READWRITE) == addr);
}

GuardKind
sys_guard_kind(void)
{
    const char *env = getenv("GMP_GUARD");

    return env != NULL && strcmp(env, "none") == 0 ? GUARD_NONE : GUARD_MPROTECT;
}

GuardKind
sys_guard_page(void *addr)
{
    if (sys_guard_kind() == GUARD_NONE || !sys_protect(addr, sys_page_size()))
        return GUARD_NONE;
    return GUARD_MPROTECT;
}

/* ---- threads ---- */

#define THREAD_STACK ((unsigned)1 << 20)

typedef struct ThreadStart {
    void (*fn)(void *);
    void *arg;
    char name[16];
} ThreadStart;

static void
name_thread(const char *name)
{
    typedef HRESULT(WINAPI * Describe)(HANDLE, PCWSTR);
    Describe describe = (Describe)(void (*)(void))GetProcAddress(GetModuleHandleA("kernel32"), "SetThreadDescription");
    wchar_t wide[16];
    size_t i;

    if (describe == NULL) /* before Windows 10 */
        return;
    for (i = 0; name[i] != '\0' && i < 15; i++)
        wide[i] = (wchar_t)name[i];
    wide[i] = L'\0';
    describe(GetCurrentThread(), wide);
}

static unsigned __stdcall thread_main(void *p)
{
    ThreadStart st = *(ThreadStart *)p;

    free(p);
    name_thread(st.name);
    st.fn(st.arg);
    return 0;
}

int
sys_thread_start(void (*fn)(void *), void *arg, const char *name, bool signals)
{
    ThreadStart *st = malloc(sizeof(*st));
    uintptr_t thread;

    (void)signals;
    if (st == NULL)
        return GMP_ENOMEM;
    st->fn = fn;
    st->arg = arg;
    snprintf(st->name, sizeof(st->name), "%s", name);
    thread = _beginthreadex(NULL, THREAD_STACK, thread_main, st, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    if (thread == 0) {
        free(st);
        return GMP_EAGAIN;
    }
    CloseHandle((HANDLE)thread);
    return 0;
}

uint64_t
sys_thread_id(void)
{
    return GetCurrentThreadId();
}

void
sys_thread_yield(void)
{
    SwitchToThread();
}

void
sys_usleep(int64_t us)
{
    HANDLE timer;
    LARGE_INTEGER due;

    if (us <= 0)
        return;
    due.QuadPart = us > INT64_MAX / 10 ? INT64_MIN : -us * 10;
    timer = CreateWaitableTimerExW(NULL, NULL, CREATE_WAITABLE_TIMER_HIGH_RESOLUTION, TIMER_ALL_ACCESS);
    if (timer != NULL && SetWaitableTimer(timer, &due, 0, NULL, NULL, FALSE))
        WaitForSingleObject(timer, INFINITE);
    else
        Sleep((DWORD)((us + 999) / 1000)); /* before Windows 10 1803 */
    if (timer != NULL)
        CloseHandle(timer);
}

int
sys_ncpu(void)
{
    DWORD_PTR mine, all;
    int n = 0;

    if (GetProcessAffinityMask(GetCurrentProcess(), &mine, &all))
        n = __builtin_popcountll(mine);
    return n > 0 ? n : 1;
}

/* A handler for a fault runs on the stack that faulted; there is no other. */
void *
sys_sigstack_install(void)
{
    return NULL;
}

void
sys_sigstack_free(void *sigstack)
{
    (void)sigstack;
}

typedef struct ThreadExit {
    void (*fn)(void *);
    void *arg;
} ThreadExit;

static DWORD exit_slot = FLS_OUT_OF_INDEXES; /* exit_lock */
static Mutex exit_lock;

static void WINAPI
exit_run(void *p)
{
    ThreadExit te;

    if (p == NULL)
        return;
    te = *(ThreadExit *)p;
    free(p);
    if (te.fn != NULL)
        te.fn(te.arg);
}

int
sys_at_thread_exit(void (*fn)(void *), void *arg)
{
    ThreadExit *te;

    mutex_lock(&exit_lock);
    if (exit_slot == FLS_OUT_OF_INDEXES)
        exit_slot = FlsAlloc(exit_run);
    mutex_unlock(&exit_lock);
    if (exit_slot == FLS_OUT_OF_INDEXES)
        return GMP_ENOMEM;
    te = FlsGetValue(exit_slot);
    if (te == NULL) {
        te = sys_malloc(sizeof(*te));
        if (te == NULL)
            return GMP_ENOMEM;
        te->fn = NULL;
        if (!FlsSetValue(exit_slot, te)) {
            free(te);
            return GMP_ENOMEM;
        }
    }
    te->fn = fn;
    te->arg = arg;
    return GMP_OK;
}

bool
sys_thread_freeze(uint64_t tid)
{
    HANDLE thread = OpenThread(THREAD_SUSPEND_RESUME | THREAD_GET_CONTEXT, FALSE, (DWORD)tid);
    CONTEXT context = {.ContextFlags = CONTEXT_CONTROL};
    bool frozen;

    if (thread == NULL)
        return false;
    /* To suspend is only a request: the context can be had when it has been met. */
    frozen = SuspendThread(thread) != (DWORD)-1 && GetThreadContext(thread, &context);
    CloseHandle(thread);
    return frozen;
}

int
sys_thread_count(void)
{
    HANDLE all = CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0);
    THREADENTRY32 entry = {.dwSize = sizeof(entry)};
    int n = 0;

    if (all == INVALID_HANDLE_VALUE)
        return -1;
    for (BOOL more = Thread32First(all, &entry); more; more = Thread32Next(all, &entry))
        n += entry.th32OwnerProcessID == GetCurrentProcessId();
    CloseHandle(all);
    return n;
}

bool
sys_tls_blocks(bool (*fn)(void *arg, const void *object, void *block, size_t size), void *arg)
{
    (void)fn, (void)arg;
    return false;
}

#endif
