/* asm_amd64.S: gmp_switch, gmp_call_on and gmp_trampoline for x86-64, System V ABI.
 *
 * A parked context, from its saved stack pointer upwards (gobuf_init builds the same):
 *     r15 r14 r13 r12 rbx rbp | return address
 * Works with indirect-branch tracking (endbr64).  Not with shadow stacks: the property note says so, and a program that
 * links this runs without them.
 *
 * Rejected: leaving by `popq %rcx; jmp *%rcx`.  A ping-pong between two call sites falls from 9 to 3 ns, because `ret`
 * never meets the prediction that the other side's call left behind.  But a jump leaves the return stack of the CPU one
 * entry out, and every caller up the chain pays: 40 goroutines that switch to each other from one site three calls deep
 * take 29 ns with the jump and 5 ns with `ret` (through a scheduler stack in between, 30 and 24).  AMD EPYC.
 */
#if defined(__x86_64__) && !defined(_WIN32)

#if defined(__APPLE__)
#define SYM(x) _##x
#define HIDDEN(x) .private_extern SYM(x)
#define FUNC(x)
#define END(x)
#else
#define SYM(x) x
#define HIDDEN(x) .hidden x
#define FUNC(x) .type x, @function
#define END(x) .size x, . - x
#endif

/* Mach-O allows no label inside a procedure: there it becomes two. */
#if defined(__APPLE__)
#define SPLIT .cfi_endproc
    .macro RESUME
    .cfi_startproc
    .cfi_undefined %rip
    .endm
#else
#define SPLIT
#define RESUME
#endif

    .text
    .globl SYM(gmp_switch)
    HIDDEN(gmp_switch)
    FUNC(gmp_switch)
    .p2align 5
SYM(gmp_switch):                        /* rdi = save_sp, rsi = to_sp */
    .cfi_startproc
    endbr64
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbp, 0
    pushq %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbx, 0
    pushq %r12
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r12, 0
    pushq %r13
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r13, 0
    pushq %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r14, 0
    pushq %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r15, 0
    movq %rsp, (%rdi)
    movq %rsi, %rsp                     /* the other stack has the same layout: the unwind rules stay true */
    popq %r15
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r15
    popq %r14
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r14
    popq %r13
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r13
    popq %r12
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r12
    popq %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbx
    popq %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbp
    ret
    .cfi_endproc
    END(gmp_switch)

    .globl SYM(gmp_call_on)
    HIDDEN(gmp_call_on)
    FUNC(gmp_call_on)
    .p2align 4
SYM(gmp_call_on):                       /* rdi = sp, rsi = fn, rdx = arg */
    .cfi_startproc
    endbr64
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbp, 0
    movq %rsp, %rbp
    .cfi_def_cfa_register %rbp
    andq $-16, %rdi
    movq %rdi, %rsp
    movq %rdx, %rdi
    callq *%rsi
    movq %rbp, %rsp
    popq %rbp
    .cfi_def_cfa %rsp, 8
    ret
    .cfi_endproc
    END(gmp_call_on)

    .globl SYM(gmp_trampoline)
    HIDDEN(gmp_trampoline)
    FUNC(gmp_trampoline)
    .p2align 4
    .cfi_startproc
    .cfi_undefined %rip                 /* no caller: unwinders stop here */
    nop                                 /* unwinders look up return address - 1 */
    SPLIT
SYM(gmp_trampoline):                    /* rbx = entry, r12 = arg, rbp = 0; rsp is a multiple of 16 */
    RESUME
    endbr64
    movq %r12, %rdi
    callq *%rbx
    ud2                                 /* entry returned */
    .cfi_endproc
    END(gmp_trampoline)

#if defined(__ELF__)
    .section .note.gnu.property, "a"
    .p2align 3
    .long 4, 16, 5                      /* name size, data size, NT_GNU_PROPERTY_TYPE_0 */
    .asciz "GNU"
    .long 0xc0000002, 4, 1, 0           /* GNU_PROPERTY_X86_FEATURE_1_AND: IBT */
#endif

#endif

#if defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
