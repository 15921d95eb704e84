/* stack.h: memory for goroutines: slots carved from large slabs.
 *
 * A slot is one goroutine's whole memory: [guard | C stack growing down ... | what the class puts at the top | G ].
 * Slabs are reserved without committing, so an untouched slot costs address space only, and a goroutine that has used
 * one page keeps one page.  A slab is one VMA for thousands of slots, whatever guards it has (MADV_GUARD_INSTALL), or
 * as many as the map count allows (mprotect).  Freed slots are kept for reuse; slabs are never unmapped.
 *
 * Every slot is aligned to its size (all but odd page sizes are powers of two), so masking an address gives the slot.
 */
#ifndef GMP_STACK_H
#define GMP_STACK_H

#include "gobuf.h"
#include "sys.h"

typedef enum StackClass {
    STACK_2K,     /* 2 KiB, two to a page, no guard page: a canary at the low end, to be checked at each switch */
    STACK_64K,    /* 64 KiB reserved, grown by page faults, guarded */
    STACK_256K,   /* the same with 256 KiB: the default */
    STACK_512K,   /* the same with 512 KiB: for code that recurses deeply in C */
    STACK_PYTHON, /* python goroutines, in slabs of their own, so that their Gs can be listed */
    STACK_CLASSES
} StackClass;

/* What a slot really measures: the nominal size, but four pages at least where there is a guard, and 64 KiB for
 * STACK_2K under a sanitizer (its run time alone needs more than 2 KiB of stack). */
size_t stack_class_size(StackClass cls);
/* Bytes at the low end of each slot of the class that are no stack: the guard page, or the canary. */
size_t stack_guard_size(StackClass cls);
/* Low address of a slot; its contents are whatever the last user left (a never-used slot is zero, but for the canary of
 * STACK_2K).  NULL when refused.  Thread-safe; takes one of stack.c's own locks, calls nothing outside sys.h. */
void *stack_alloc(StackClass cls);
void stack_free(StackClass cls, void *lo);
/* The same for up to n slots under one lock.  stack_alloc_n returns how many it got: fewer than n only when refused. */
size_t stack_alloc_n(StackClass cls, void **out, size_t n);
void stack_free_n(StackClass cls, void *const *lo, size_t n);
/* Give back every page of the slot but the topmost keep bytes (rounded up to pages) and the guard; they read as zero.
 * One system call: the caller knows whether its goroutine went deep enough for it.  Does nothing for STACK_2K. */
void stack_trim(StackClass cls, void *lo, size_t keep);

/* The canary of STACK_2K: written when the slot is allocated, checked when it is freed (a damaged one throws).  Four words: it
 * finds the overflow that writes to one of them, and misses the frame that leaps over all of them. */
#define STACK_CANARY UINT64_C(0x9d6a13c0ffee57ac)
#define STACK_CANARY_WORDS 4
static inline bool
stack_canary_ok(const void *lo)
{
    const uint64_t *w = lo;
    return ((w[0] ^ STACK_CANARY) | (w[1] ^ STACK_CANARY) | (w[2] ^ STACK_CANARY) | (w[3] ^ STACK_CANARY)) == 0;
}

/* Number of slots ever carved of a class, and the low address of the i-th (0 <= i < count): how all goroutines are
 * listed.  Async-signal-safe, lock-free; slots are never uncarved. */
size_t stack_count(StackClass cls);
void *stack_at(StackClass cls, size_t i);
/* Whether addr lies in a slab, and in which slot; in_guard: in the page where the class has its guard, so that a fault
 * there is a stack overflow.  Any of the three may be NULL.  Async-signal-safe. */
bool stack_find(const void *addr, StackClass *cls, void **lo, bool *in_guard);

typedef struct StackStats {
    size_t slabs, reserved_bytes, carved, in_use, free; /* carved = in_use + free */
    size_t guarded, unguarded;                          /* of the carved ones; STACK_2K counts in neither */
} StackStats;
void stack_stats(StackClass cls, StackStats *out);
/* "madvise", "mprotect" or "none", for the self-check. */
const char *stack_guard_name(void);

/* Round a fork: the first waits until no other thread is inside stack.c, the second (in parent and child, in the child
 * after lock_after_fork) lets them in again. */
void stack_before_fork(void);
void stack_after_fork(void);

#endif
