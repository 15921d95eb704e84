/* stack.c: slots for goroutines, carved from slabs; and the birth of a context (gobuf_init) with its sanitizer hooks.
 *
 * A slab is one mapping: [ slot 0 | slot 1 | ... | slot n-1 | n pointers ].  Each class has a pool:
 *   1. Slots are carved in order, and only from the last slab; a carved slot stays carved for ever.
 *   2. The first slab has FIRST_SLAB bytes, a later one an eighth of what the class has already, so a few dozen slabs
 *      fill the address space.  When the system refuses, half as much is asked for, down to one slot, then NULL it is.
 *   3. Free slots are a stack of addresses, last in first out, whose storage is the n pointers at the end of each slab
 *      taken together: room for every slot by construction, and no page of a free slot is touched.
 *   4. nslabs and carved are published with release after what they cover: readers need no lock, so a signal handler
 *      can list goroutines and name the owner of a faulting address.
 * The guard of a new slot is installed by the thread that carved it, outside the lock: it is a system call.
 *
 * Rejected: guards for a whole slab at once (page tables for all its slots: 512 bytes each, before the first use); the
 * free list inside the slots (touches a cold page); unmapping empty slabs (listing and stack_find would need a lock).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "stack.h"

#if defined(GMP_ASAN) || defined(GMP_TSAN)
#include <pthread.h>
#define SIZE_2K ((size_t)64 << 10)
#else
#define SIZE_2K ((size_t)2 << 10)
#endif

#define FIRST_SLAB ((size_t)64 << 20)
#define LARGEST_SLAB ((size_t)16 << 30)
#define MAX_SLABS 512

typedef struct Slab {
    char *lo; /* slot 0 */
    size_t slots;
    size_t first; /* number of slots in earlier slabs */
    void **freed; /* slots entries: this slab's share of the free stack; pool lock */
    size_t bytes; /* of the mapping */
} Slab;

typedef struct StackPool {
    Mutex lock;       /* a leaf: nothing but sys.h is called with it held */
    size_t free;      /* free slots; pool lock, read without */
    size_t free_slab; /* the top of the free stack is slabs[free_slab].freed[free_at - 1]; pool lock */
    size_t free_at;
    size_t capacity; /* slots in all slabs; pool lock */
    size_t reserved; /* bytes in all slabs; pool lock */
    size_t carved;   /* <= capacity; written under the lock */
    size_t nslabs;   /* written under the lock */
    size_t guarded;  /* atomic counters */
    size_t unguarded;
    Slab slabs[MAX_SLABS]; /* entries below nslabs never change */
} GMP_ALIGNED(GMP_CACHELINE) StackPool;

static StackPool pools[STACK_CLASSES];

static size_t
round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* By setup.py: what CPython's recursion limits need depends on its version. */
#ifndef GMP_PYTHON_STACK_KIB
#define GMP_PYTHON_STACK_KIB 256
#endif

size_t
stack_class_size(StackClass cls)
{
    static const size_t sizes[STACK_CLASSES] = {SIZE_2K, (size_t)64 << 10, (size_t)256 << 10, (size_t)512 << 10,
                                                (size_t)GMP_PYTHON_STACK_KIB << 10};
    size_t least = cls == STACK_2K ? 0 : 4 * sys_page_size();

    return sizes[cls] > least ? sizes[cls] : least;
}

size_t
stack_guard_size(StackClass cls)
{
    return cls == STACK_2K ? STACK_CANARY_WORDS * sizeof(uint64_t) : sys_page_size();
}

/* Pool lock held, every slot carved.  False when the system refuses even one slot, or the table is full. */
static bool
slab_add(StackPool *pool, size_t size)
{
    size_t page = sys_page_size();
    size_t n = pool->nslabs, want = pool->reserved / 8, slots, bytes, tail;
    Slab *s = &pool->slabs[n];
    uintptr_t at, lo;

    if (n == MAX_SLABS)
        return false;
    want = want < FIRST_SLAB ? FIRST_SLAB : want > LARGEST_SLAB ? LARGEST_SLAB : want;
    for (slots = want / size;; slots /= 2) {
        if (slots == 0)
            return false;
        tail = round_up(slots * sizeof(void *), page);
        bytes = slots * size + tail + (size > page ? size - page : 0); /* slack to align by */
        at = (uintptr_t)sys_reserve(bytes);
        if (at != 0)
            break;
    }
    lo = round_up(at, size);
    if (lo > at)
        sys_release((void *)at, lo - at);
    s->bytes = slots * size + tail;
    if (lo + s->bytes < at + bytes)
        sys_release((void *)(lo + s->bytes), at + bytes - lo - s->bytes);
    s->lo = (char *)lo;
    s->slots = slots;
    s->first = pool->capacity;
    s->freed = (void **)(lo + slots * size);
    pool->capacity += slots;
    pool->reserved += s->bytes;
    atomic_store_release(&pool->nslabs, n + 1); /* pairs with the acquires in stack_at and stack_find */
    return true;
}

size_t
stack_alloc_n(StackClass cls, void **out, size_t n)
{
    StackPool *pool = &pools[cls];
    size_t size = stack_class_size(cls), got = 0, reused;

    mutex_lock(&pool->lock);
    while (got < n && pool->free > 0) {
        if (pool->free_at == 0)
            pool->free_at = pool->slabs[--pool->free_slab].slots;
        out[got++] = pool->slabs[pool->free_slab].freed[--pool->free_at];
        atomic_store_relaxed(&pool->free, pool->free - 1);
    }
    reused = got;
    while (got < n) {
        Slab *s;
        if (pool->carved == pool->capacity && !slab_add(pool, size))
            break;
        s = &pool->slabs[pool->nslabs - 1];
        out[got++] = s->lo + (pool->carved - s->first) * size;
        atomic_store_release(&pool->carved, pool->carved + 1); /* pairs with the acquire in stack_count */
    }
    mutex_unlock(&pool->lock);

    if (cls == STACK_2K) {
        for (size_t i = 0; i < got; i++)
            for (int w = 0; w < STACK_CANARY_WORDS; w++)
                ((uint64_t *)out[i])[w] = STACK_CANARY;
    }
    else {
        for (size_t i = reused; i < got; i++)
            atomic_xadd_relaxed(sys_guard_page(out[i]) != GUARD_NONE ? &pool->guarded : &pool->unguarded, 1);
    }
    return got;
}

void *
stack_alloc(StackClass cls)
{
    void *lo;

    return stack_alloc_n(cls, &lo, 1) == 1 ? lo : NULL;
}

void
stack_free_n(StackClass cls, void *const *lo, size_t n)
{
    StackPool *pool = &pools[cls];

    for (size_t i = 0; i < n; i++) {
        GMP_CHECK(((uintptr_t)lo[i] & (sizeof(uint64_t) - 1)) == 0);
        if (cls == STACK_2K && !stack_canary_ok(lo[i]))
            gmp_throw("stack overflow: a goroutine on a 2 KiB stack has overrun it");
#ifdef GMP_DEBUG
        StackClass found;
        void *slot;
        GMP_CHECK(stack_find(lo[i], &found, &slot, NULL) && found == cls && slot == lo[i]);
#endif
    }
    mutex_lock(&pool->lock);
    GMP_CHECK(pool->free + n <= pool->carved); /* else something was freed twice */
    for (size_t i = 0; i < n; i++) {
        if (pool->free_at == pool->slabs[pool->free_slab].slots) {
            pool->free_slab++;
            pool->free_at = 0;
        }
        pool->slabs[pool->free_slab].freed[pool->free_at++] = lo[i];
    }
    atomic_store_relaxed(&pool->free, pool->free + n);
    mutex_unlock(&pool->lock);
}

void
stack_free(StackClass cls, void *lo)
{
    stack_free_n(cls, &lo, 1);
}

void
stack_trim(StackClass cls, void *lo, size_t keep)
{
    size_t page = sys_page_size(), size = stack_class_size(cls);

    if (cls == STACK_2K || keep > size - 2 * page)
        return;
    keep = round_up(keep, page);
    sys_discard((char *)lo + page, size - page - keep);
}

size_t
stack_count(StackClass cls)
{
    return atomic_load_acquire(&pools[cls].carved); /* pairs with the release in stack_alloc_n */
}

void *
stack_at(StackClass cls, size_t i)
{
    StackPool *pool = &pools[cls];
    size_t lo = 0, hi = atomic_load_acquire(&pool->nslabs); /* pairs with the release in slab_add */

    while (hi - lo > 1) { /* the last slab whose first <= i */
        size_t mid = lo + (hi - lo) / 2;
        if (pool->slabs[mid].first <= i)
            lo = mid;
        else
            hi = mid;
    }
    if (hi == 0 || i - pool->slabs[lo].first >= pool->slabs[lo].slots)
        return NULL;
    return pool->slabs[lo].lo + (i - pool->slabs[lo].first) * stack_class_size(cls);
}

bool
stack_find(const void *addr, StackClass *cls, void **lo, bool *in_guard)
{
    for (int c = 0; c < STACK_CLASSES; c++) {
        StackPool *pool = &pools[c];
        size_t n = atomic_load_acquire(&pool->nslabs); /* pairs with the release in slab_add */
        size_t size = stack_class_size((StackClass)c);

        for (size_t i = 0; i < n; i++) {
            Slab *s = &pool->slabs[i];
            size_t off = (uintptr_t)addr - (uintptr_t)s->lo; /* huge when addr is below */
            if (off >= s->slots * size)
                continue;
            if (cls != NULL)
                *cls = (StackClass)c;
            if (lo != NULL)
                *lo = s->lo + off / size * size;
            if (in_guard != NULL)
                *in_guard = c != STACK_2K && off % size < sys_page_size();
            return true;
        }
    }
    return false;
}

void
stack_stats(StackClass cls, StackStats *out)
{
    StackPool *pool = &pools[cls];

    mutex_lock(&pool->lock);
    out->slabs = pool->nslabs;
    out->reserved_bytes = pool->reserved;
    out->carved = pool->carved;
    out->free = pool->free;
    out->in_use = out->carved - out->free;
    mutex_unlock(&pool->lock);
    out->guarded = atomic_load_relaxed(&pool->guarded);
    out->unguarded = atomic_load_relaxed(&pool->unguarded);
}

const char *
stack_guard_name(void)
{
    static const char *const names[] = {"none", "mprotect", "madvise"};

    return names[sys_guard_kind()];
}

void
stack_before_fork(void)
{
    for (int c = 0; c < STACK_CLASSES; c++)
        mutex_lock(&pools[c].lock);
}

void
stack_after_fork(void)
{
    for (int c = STACK_CLASSES; c-- > 0;)
        mutex_unlock(&pools[c].lock);
}

/* ---- contexts ---- */

#ifdef GMP_ASAN
void __sanitizer_start_switch_fiber(void **fake_stack_save, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *fake_stack_save, const void **bottom_old, size_t *size_old);
void __asan_unpoison_memory_region(void const volatile *addr, size_t size);

/* A context that ended never returned from its last frames: their red zones still stand on the stack.  What lies below
 * the last stack pointer was left by ordinary returns and is clean; a Gobuf that has not run may use a used slot. */
static void
asan_clean(Gobuf *buf, char *top)
{
    const char *lo = buf->asan_bottom, *from;
    const size_t shallow = 16 << 10;

    if (lo == NULL)
        return;
    from = (size_t)(top - lo) > shallow ? top - shallow : lo;
    if ((const char *)buf->sp >= lo && (const char *)buf->sp < from)
        from = buf->sp;
    __asan_unpoison_memory_region(from, (size_t)(top - from));
}
#endif

#ifdef GMP_TSAN
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
#endif

#if defined(GMP_ASAN) || defined(GMP_TSAN)

void
gobuf_set_stack(Gobuf *buf, void *lo, size_t size)
{
#ifdef GMP_ASAN
    buf->asan_bottom = lo;
    buf->asan_size = size;
#else
    (void)buf, (void)lo, (void)size;
#endif
}

void
gobuf_init_thread(Gobuf *buf)
{
#ifdef GMP_ASAN
#if defined(__APPLE__)
    buf->asan_size = pthread_get_stacksize_np(pthread_self());
    buf->asan_bottom = (char *)pthread_get_stackaddr_np(pthread_self()) - buf->asan_size;
#else
    pthread_attr_t attr;
    void *lo = NULL;

    GMP_CHECK(pthread_getattr_np(pthread_self(), &attr) == 0);
    GMP_CHECK(pthread_attr_getstack(&attr, &lo, &buf->asan_size) == 0);
    pthread_attr_destroy(&attr);
    buf->asan_bottom = lo;
#endif
    buf->asan_fake_stack = NULL;
#endif
#ifdef GMP_TSAN
    gobuf_destroy(buf);
    buf->tsan_fiber = __tsan_get_current_fiber();
#endif
}

void
gobuf_destroy(Gobuf *buf)
{
    (void)buf;
#ifdef GMP_TSAN
    if (buf->tsan_owned)
        __tsan_destroy_fiber(buf->tsan_fiber);
    buf->tsan_fiber = NULL;
    buf->tsan_owned = false;
#endif
}

/* Not instrumented: between the announcement and the switch the tool thinks we are elsewhere. */
GMP_NOINLINE __attribute__((no_sanitize("thread", "address"))) void
gobuf_switch(Gobuf *from, Gobuf *to, bool from_dies)
{
    (void)from_dies;
#ifdef GMP_ASAN
    __sanitizer_start_switch_fiber(from_dies ? NULL : &from->asan_fake_stack, to->asan_bottom, to->asan_size);
#endif
#ifdef GMP_TSAN
    __tsan_switch_to_fiber(to->tsan_fiber, 0);
#endif
    gmp_switch(&from->sp, to->sp);
#ifdef GMP_ASAN
    __sanitizer_finish_switch_fiber(from->asan_fake_stack, NULL, NULL);
#endif
}

void
gobuf_entered(void)
{
#ifdef GMP_ASAN
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
}

#endif

void
gobuf_init(Gobuf *buf, void *top, void (*entry)(void *), void *arg)
{
    uintptr_t *frame = (uintptr_t *)((uintptr_t)top & ~(uintptr_t)15) - GOBUF_FRAME / sizeof(uintptr_t);

#ifdef GMP_ASAN
    asan_clean(buf, (char *)((uintptr_t)top & ~(uintptr_t)15));
    buf->asan_fake_stack = NULL;
#endif
#ifdef GMP_TSAN
    gobuf_destroy(buf);
    buf->tsan_fiber = __tsan_create_fiber(0);
    buf->tsan_owned = true;
#endif
#if defined(_WIN32)
    memset(frame, 0, GOBUF_FRAME);
    frame[20] = (uintptr_t)top & ~(uintptr_t)15; /* base of the stack; xmm6 to xmm15 lie below */
    frame[21] = (uintptr_t)buf->lo;              /* limit: it is all there */
    frame[22] = (uintptr_t)buf->lo;              /* where it was allocated */
    frame[27] = (uintptr_t)arg;                  /* r12 */
    frame[30] = (uintptr_t)entry;                /* rbx; rbp above it is 0 */
    frame[32] = (uintptr_t)&gmp_trampoline;      /* return address */
#elif defined(__x86_64__)
    frame[0] = 0;                          /* r15 */
    frame[1] = 0;                          /* r14 */
    frame[2] = 0;                          /* r13 */
    frame[3] = (uintptr_t)arg;             /* r12 */
    frame[4] = (uintptr_t)entry;           /* rbx */
    frame[5] = 0;                          /* rbp: ends the chain of frame pointers */
    frame[6] = (uintptr_t)&gmp_trampoline; /* return address; it leaves the stack pointer at top */
#elif defined(__aarch64__)
    memset(frame, 0, GOBUF_FRAME);
    frame[0] = (uintptr_t)entry;            /* x19 */
    frame[1] = (uintptr_t)arg;              /* x20 */
    frame[11] = (uintptr_t)&gmp_trampoline; /* x30; x29 = 0 ends the chain of frame pointers */
#else
#error "gmp: no context switch for this architecture yet"
#endif
    buf->sp = frame;
}
