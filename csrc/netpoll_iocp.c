/* netpoll_iocp.c: the net poller's back-end on Windows: sockets only.
 *
 * A completion port reports that an operation has ended, not that one is worth a try.  The operation that ends when a socket is
 * ready, and does nothing else, is IOCTL_AFD_POLL: what select() itself is made of.  It is asked of a handle of the socket
 * driver (\Device\Afd), names sockets and events, and ends when one of the events holds: at once if it holds already.
 *   1. One operation per direction.  It is idle until a goroutine is about to wait (netpoll_backend_arm), then pending.
 *   2. A wait finds it pending: an earlier wait ended otherwise (deadline), and what was asked for is still asked for.
 *   3. It ends: the poller marks it idle first and wakes second, while a waiter sets PD_WAIT first and looks at it
 *      second.  So either the poller finds the waiter, or the waiter asks again.
 * So no edge needs to be remembered by the kernel: each wait begins by asking for the level.  What was there before ends the
 * wait; what nobody waits for is not seen (netpoll_seen knows less than elsewhere).
 * The memory of an operation belongs to the kernel while it is pending, also after netpoll_backend_close has cancelled it.
 *
 * Rejected: a read of no bytes (WSARecv), the documented way: there is nothing like it for writes, accept or connect, and it ties
 * the user's socket to our port for good, which Python code that uses it with asyncio's port would meet.  ProcessSocketNotifications,
 * which is just this poller as an interface of its own: Windows 11 only.  One operation for both directions: each wait would have
 * to cancel it and ask again for more.
 */
#if defined(_WIN32)
#include "netpoll.h"

#include <errno.h>
#include <winsock2.h>

#include <mswsock.h>
#include <windows.h>
#include <winternl.h>

#define EVENTS 128
#define REGS_PER_HANDLE 16 /* the driver looks through all operations of a handle */

#ifndef SIO_BASE_HANDLE
#define SIO_BASE_HANDLE 0x48000022
#endif
#define IOCTL_AFD_POLL 0x00012024
#define AFD_POLL_RECEIVE 0x0001
#define AFD_POLL_SEND 0x0004
#define AFD_POLL_DISCONNECT 0x0008 /* the other end has finished sending */
#define AFD_POLL_ABORT 0x0010
#define AFD_POLL_LOCAL_CLOSE 0x0020
#define AFD_POLL_ACCEPT 0x0080
#define AFD_POLL_CONNECT_FAIL 0x0100

#define ENDS (AFD_POLL_ABORT | AFD_POLL_LOCAL_CLOSE | AFD_POLL_CONNECT_FAIL)
#define STATUS_PENDING_ ((NTSTATUS)0x00000103)
#define STATUS_CANCELLED_ ((NTSTATUS)0xC0000120)

NTSTATUS NTAPI NtCancelIoFileEx(HANDLE file, IO_STATUS_BLOCK *which, IO_STATUS_BLOCK *result);

typedef struct AfdPollInfo {
    LARGE_INTEGER timeout;
    ULONG n;
    ULONG exclusive;
    struct {
        HANDLE socket;
        ULONG events;
        NTSTATUS status;
    } handle[1];
} AfdPollInfo;

typedef struct Reg Reg;
typedef struct Op {
    IO_STATUS_BLOCK iosb; /* the kernel's while pending */
    AfdPollInfo info;     /* the same */
    uint64_t cookie;
    PollMode mode;
    bool pending; /* Reg.lock */
    Reg *reg;
} Op;

/* A registration.  Type-stable, free when it is closed and nothing is pending. */
struct Reg {
    Mutex lock;
    HANDLE afd; /* for ever: the chunk's, and its set's */
    int set;
    HANDLE socket;
    bool closed; /* lock */
    bool gone;   /* lock: the socket was closed before the registration */
    Op op[2];
    Reg *link; /* free list */
};

static HANDLE ports[SETS];
static Mutex free_lock;
static Reg *free_lists[SETS];

int
netpoll_backend_init(int set)
{
    /* As many threads as want to may take from it: goroutines that go on do so on the thread that has polled. */
    ports[set] = CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, MAXDWORD);
    return ports[set] != NULL ? 0 : ENOMEM;
}

void
netpoll_backend_afterfork_child(int set)
{
    (void)set;
}

/* ---- registrations ---- */

static HANDLE
afd_open(int set)
{
    static const WCHAR path[] = L"\\Device\\Afd\\Gmp"; /* anything after \Afd\ will do */
    UNICODE_STRING name = {sizeof path - sizeof path[0], sizeof path, (PWSTR)path};
    OBJECT_ATTRIBUTES attributes = {.Length = sizeof attributes, .ObjectName = &name};
    IO_STATUS_BLOCK iosb;
    HANDLE afd;
    if (NtCreateFile(&afd, SYNCHRONIZE, &attributes, &iosb, NULL, 0, FILE_SHARE_READ | FILE_SHARE_WRITE, FILE_OPEN, 0,
                     NULL, 0) < 0)
        return NULL;
    if (CreateIoCompletionPort(afd, ports[set], 0, 0) == NULL ||
        !SetFileCompletionNotificationModes(afd, FILE_SKIP_SET_EVENT_ON_HANDLE)) {
        CloseHandle(afd);
        return NULL;
    }
    return afd;
}

/* *err: why there is none. */
static Reg *
reg_alloc(int set, int *err)
{
    mutex_lock(&free_lock);
    if (free_lists[set] == NULL) {
        Reg *chunk = sys_calloc(REGS_PER_HANDLE, sizeof *chunk);
        HANDLE afd = chunk != NULL ? afd_open(set) : NULL;
        if (afd == NULL) {
            *err = chunk != NULL ? EMFILE : ENOMEM;
            mutex_unlock(&free_lock);
            free(chunk);
            return NULL;
        }
        for (int i = REGS_PER_HANDLE; i-- > 0;) {
            chunk[i].afd = afd;
            chunk[i].set = set;
            for (int m = 0; m < 2; m++) {
                chunk[i].op[m].mode = (PollMode)m;
                chunk[i].op[m].reg = &chunk[i];
            }
            chunk[i].link = free_lists[set];
            free_lists[set] = &chunk[i];
        }
    }
    Reg *reg = free_lists[set];
    free_lists[set] = reg->link;
    mutex_unlock(&free_lock);
    return reg;
}

static void
reg_free(Reg *reg)
{
    mutex_lock(&free_lock);
    reg->link = free_lists[reg->set];
    free_lists[reg->set] = reg;
    mutex_unlock(&free_lock);
}

/* The socket under what layered providers have put on it; NULL and an errno if it is none. */
static HANDLE
base_socket(int fd, int *err)
{
    SOCKET base = INVALID_SOCKET;
    DWORD n, flags;
    int type, len = sizeof type;
    if (getsockopt((SOCKET)fd, SOL_SOCKET, SO_TYPE, (char *)&type, &len) == 0 && /* Wine's WSAIoctl does not look */
        WSAIoctl((SOCKET)fd, SIO_BASE_HANDLE, NULL, 0, &base, sizeof base, &n, NULL, NULL) == 0)
        return (HANDLE)base;
    *err = GetHandleInformation((HANDLE)(intptr_t)fd, &flags) ? EPERM : EBADF;
    return NULL;
}

int
netpoll_backend_open(PollDesc *pd, PollDesc *last)
{
    int err = 0;
    if (last != NULL) { /* there is no way to ask: it stands unless a wait has found the socket closed */
        Reg *old = last->backend;
        mutex_lock(&old->lock);
        bool gone = old->gone;
        mutex_unlock(&old->lock);
        if (!gone)
            return EEXIST;
    }
    HANDLE socket = base_socket(pd->fd, &err);
    if (socket == NULL)
        return err;
    Reg *reg = reg_alloc(pd->set->set, &err);
    if (reg == NULL)
        return err;
    mutex_lock(&reg->lock);
    reg->socket = socket;
    reg->closed = reg->gone = false;
    for (int m = 0; m < 2; m++)
        reg->op[m].cookie = pd->cookie;
    mutex_unlock(&reg->lock);
    pd->backend = reg;
    return 0;
}

void
netpoll_backend_close(PollDesc *pd, bool ours)
{
    (void)ours; /* it goes by sockets, not by numbers */
    Reg *reg = pd->backend;
    mutex_lock(&reg->lock);
    reg->closed = true;
    bool idle = true;
    for (int m = 0; m < 2; m++) {
        IO_STATUS_BLOCK result;
        if (!reg->op[m].pending)
            continue;
        idle = false;
        NtCancelIoFileEx(reg->afd, &reg->op[m].iosb, &result); /* it may have ended: then that is on its way */
    }
    mutex_unlock(&reg->lock);
    if (idle)
        reg_free(reg);
}

void
netpoll_backend_arm(PollDesc *pd, PollMode mode)
{
    Reg *reg = pd->backend; /* if it is closed meanwhile, and another's already, that one asks once too often */
    Op *op = &reg->op[mode];
    NTSTATUS status = 0;
    mutex_lock(&reg->lock);
    if (!op->pending && !reg->closed) {
        op->info.timeout.QuadPart = INT64_MAX;
        op->info.n = 1;
        op->info.exclusive = FALSE;
        op->info.handle[0].socket = reg->socket;
        op->info.handle[0].status = 0;
        op->info.handle[0].events =
            ENDS | (mode == POLL_READ ? AFD_POLL_RECEIVE | AFD_POLL_ACCEPT | AFD_POLL_DISCONNECT : AFD_POLL_SEND);
        op->iosb.Status = STATUS_PENDING_;
        /* Reported by the port even if it ends at once. */
        status = NtDeviceIoControlFile(reg->afd, NULL, NULL, op, &op->iosb, IOCTL_AFD_POLL, &op->info, sizeof op->info,
                                       &op->info, sizeof op->info);
        op->pending = status >= 0;
        reg->gone |= status < 0;
    }
    mutex_unlock(&reg->lock);
    if (status < 0) /* the read or write will tell why; this goroutine is not parked yet */
        netpoll_ready(op->cookie, mode == POLL_READ, mode == POLL_WRITE, false);
}

/* ---- polling ---- */

void
netpoll_backend_break(int set)
{
    if (!PostQueuedCompletionStatus(ports[set], 0, 0, NULL))
        gmp_throw("PostQueuedCompletionStatus: error %lu", GetLastError());
}

static void
ended(Op *op)
{
    Reg *reg = op->reg;
    mutex_lock(&reg->lock);
    NTSTATUS status = op->iosb.Status;
    ULONG events = status >= 0 && op->info.n != 0 ? op->info.handle[0].events : 0;
    uint64_t cookie = op->cookie;
    op->pending = false;
    reg->gone |= (events & AFD_POLL_LOCAL_CLOSE) != 0;
    bool closed = reg->closed;
    bool idle = !reg->op[0].pending && !reg->op[1].pending;
    mutex_unlock(&reg->lock);
    if (closed) {
        if (idle)
            reg_free(reg);
        return;
    }
    bool end = (events & ENDS) != 0 || (status < 0 && status != STATUS_CANCELLED_);
    netpoll_ready(cookie, end || op->mode == POLL_READ, end || op->mode == POLL_WRITE,
                  end || (events & AFD_POLL_DISCONNECT) != 0);
}

bool
netpoll_backend_poll(int set, int64_t delay)
{
    OVERLAPPED_ENTRY entries[EVENTS];
    ULONG n = 0;
    DWORD ms = INFINITE;
    if (delay >= 0) {
        int64_t up = delay / 1000000 + (delay % 1000000 != 0);
        ms = up < 1000000000 ? (DWORD)up : 1000000000;
    }
    if (!GetQueuedCompletionStatusEx(ports[set], entries, EVENTS, &n, ms, FALSE)) {
        if (GetLastError() != WAIT_TIMEOUT)
            gmp_throw("GetQueuedCompletionStatusEx: error %lu", GetLastError());
        return true;
    }
    for (ULONG i = 0; i < n; i++) {
        if (entries[i].lpOverlapped != NULL)
            ended((Op *)entries[i].lpOverlapped);
        else if (delay == 0) /* the break: a poll that does not wait leaves it to the one that does */
            netpoll_backend_break(set);
    }
    return true;
}

#endif
