/* The adaptive doorbell (relay/sleep.rs, relay/doorbell.rs, crm_relay.ring()), for spin, which tries every
   interleaving of writers, a leading relay, one that follows, and a death of either.

   To be true: when nobody has anything to do any more, each relay that lives has read all that was
   committed. There is no safety poll in here, and no poll while a relay falls asleep: nothing may need
   them.

   -DBREAK_… takes away one rule each; run.sh sees that every one of them is needed. */

#define WRITERS 2
#define RELAYS 2
#ifndef TRANSACTIONS
#define TRANSACTIONS 1
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

/* the lock ASLEEP: how many share it, who has it alone, who waits for that; 0 is nobody, else relay + 1 */
byte shares, sleeper, waiter;
/* the lock LEADS */
byte leader;

byte committed;
byte has_read[RELAYS];
/* a notification that is yet to be heard; several are one */
bool bell[RELAYS], led[RELAYS];
/* what a leader knows of who follows, and what it has yet to answer */
bool known[RELAYS], to_answer[RELAYS];
byte deaths, done;

inline ring_all() {
  bell[0] = true;
  bell[1] = true
}

proctype writer() {
  byte n;
  bool rings, has_share;
  do
  :: n < TRANSACTIONS ->
     /* pg_try_advisory_xact_lock_shared: no share while somebody has the lock alone, or waits for it (or
        nobody would ever fall asleep in a storm) */
     atomic {
       rings = (sleeper != 0 || waiter != 0);
       has_share = !rings;
       if :: has_share -> shares++ :: else fi
     }
#ifdef BREAK_SHARE
     atomic { if :: has_share -> shares--; has_share = false :: else fi }
#endif
     committed++;
     /* listeners are woken, and then locks let go of, after the commit is seen */
     atomic { if :: rings -> ring_all() :: else fi }
     atomic { if :: has_share -> shares--; has_share = false :: else fi; n++ }
  :: else -> break
  od;
  done++
}

/* reads what is committed; a leader that is not rung for rings for who follows */
inline look(passes_on) {
  atomic {
    found = (has_read[me] != committed);
    has_read[me] = committed
  }
#ifndef BREAK_PASS_ON
  atomic {
    if
    :: passes_on && found && known[1 - me] -> led[1 - me] = true
    :: else
    fi
  }
#endif
}

/* its sessions end, or another relay ends them: Postgres lets go of their locks */
inline die() {
  atomic {
    deaths++;
    if :: sleeper == me + 1 -> sleeper = 0 :: else fi;
    if :: waiter == me + 1 -> waiter = 0 :: else fi;
    if :: leader == me + 1 -> leader = 0; known[1 - me] = false; to_answer[1 - me] = false :: else fi;
    known[me] = false; to_answer[me] = false;
    bell[me] = false; led[me] = false
  }
}

proctype relay(byte me) {
  bool found;

begin:
  /* it listens first, then reads */
  if :: atomic { leader == 0 -> leader = me + 1 }; goto awake
     :: atomic { leader != 0 -> skip }
  fi;
  look(false);
  /* tells the leader that it is there */
  atomic { if :: leader != 0 -> known[me] = true; to_answer[me] = true :: else fi };

follows:
end_follows:
  do
  :: atomic { bell[me] -> bell[me] = false }; look(false)
  :: atomic { led[me] -> led[me] = false }; look(false)
  :: atomic { leader == 0 -> leader = me + 1 }; goto awake
  /* another leads by now */
  :: atomic { leader != 0 && leader != me + 1 && !known[me] -> known[me] = true; to_answer[me] = true }
  :: deaths < DEATHS -> die(); goto begin
  od;

awake:
  /* who begins to lead thinks that somebody follows */
  atomic { known[1 - me] = true };
  do
  :: look(true);
     if
     :: found
     :: !found -> break
     fi
  :: deaths < DEATHS -> die(); goto begin
  od;
  atomic { waiter = me + 1 };

falling:
  do
  :: atomic { bell[me] -> bell[me] = false }; look(true)
  :: atomic { shares == 0 && waiter == me + 1 -> waiter = 0; sleeper = me + 1 };
#ifndef BREAK_LAST_LOOK
     look(true);
#endif
     break
  :: deaths < DEATHS -> die(); goto begin
  od;

asleep:
end_asleep:
  do
  :: atomic { bell[me] -> bell[me] = false }; look(false);
     if
     :: skip
     /* it is busy */
     :: atomic { sleeper = 0 }; goto awake
     fi
#ifndef BREAK_ANSWER
  /* who follows hears that it is known, and looks once more */
  :: atomic { to_answer[1 - me] -> to_answer[1 - me] = false; led[1 - me] = true }
#endif
  :: deaths < DEATHS -> die(); goto begin
  od
}

init {
  atomic { run writer(); run writer(); run relay(0); run relay(1) };
  /* nobody can do anything any more */
end_quiet:
  timeout ->
    assert(done == WRITERS);
    assert(has_read[0] == committed && has_read[1] == committed)
}
