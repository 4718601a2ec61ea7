//! The keys of the files with texts. Each file has all of them and no others.

use serde::Deserialize;

/// Declares a table of texts.
macro_rules! texts {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $kind),* }
    };
}

texts!(
    /// The texts of one language.
    Texts {
        language: String,
        /// `ltr` or `rtl`.
        direction: String,
        frame: FrameTexts,
        wait: WaitTexts,
        outcome: OutcomeTexts,
        account: AccountTexts,
        echo: EchoTexts,
        login: LoginTexts,
        register: RegisterTexts,
        logout: LogoutTexts,
        password: PasswordTexts,
        confirm: ConfirmTexts,
        second_factor: SecondFactorTexts,
        profile: ProfileTexts,
        sessions: SessionsTexts,
        unsent: UnsentTexts,
        wrong: WrongTexts,
        done: DoneTexts,
        mail: MailTexts,
        tokens: TokensTexts,
    }
);

texts!(
    /// What every page has.
    FrameTexts {
        error: String,
        one_problem: String,
        problems: String,
    }
);

texts!(
    /// Spans of time.
    WaitTexts {
        second: String,
        seconds: String,
        minutes: String,
    }
);

texts!(
    /// Pages for requests to an application that were refused or that failed.
    OutcomeTexts {
        you_are: String,
        log_in: String,
        other_login: String,
        other_way: String,
        again: String,
        back: String,
        fine_print: String,
        check: String,
        target: Outcome,
        request: Outcome,
        login: Outcome,
        logged_out: Outcome,
        denied: Outcome,
        way: Outcome,
        step_up: Outcome,
        foreign: Outcome,
        not_found: Outcome,
        method: Outcome,
        too_large: Outcome,
        limited: Outcome,
        unreachable: Outcome,
        failed: Outcome,
        timeout: Outcome,
        overloaded: Outcome,
        cut_off: Outcome,
        unavailable: Outcome,
    }
);

texts!(
    /// The page of an account.
    AccountTexts {
        title: String,
        name: String,
        none: String,
        email: String,
        password: String,
        password_is: String,
        login: String,
        login_at: String,
        second_factor: String,
        second_factor_on: String,
        second_factor_off: String,
        sessions: String,
        sessions_are: String,
        data: String,
        data_is: String,
        deletion: String,
        deletion_is: String,
        change: String,
        turn_on: String,
        turn_off: String,
        new_codes: String,
        show: String,
        download: String,
        delete: String,
        log_out: String,
        back: String,
    }
);

texts!(
    /// The page of the built-in application.
    EchoTexts {
        title: String,
        lead: String,
        caller: String,
        nobody: String,
        request: String,
        fields: String,
        pages: String,
        account: String,
        sessions: String,
        log_out: String,
    }
);

texts!(
    /// The login.
    LoginTexts {
        title: String,
        code_title: String,
        email: String,
        password: String,
        keep: String,
        button: String,
        forgot: String,
        no_account: String,
        with: String,
        or: String,
        loses_logins: String,
        register: String,
        start_again: String,
        code: String,
        code_hint: String,
        back: String,
    }
);

texts!(
    /// The registration.
    RegisterTexts {
        title: String,
        name: String,
        name_hint: String,
        button: String,
        have_account: String,
        log_in: String,
        password_hint: String,
    }
);

texts!(
    /// The logout.
    LogoutTexts {
        title: String,
        lead: String,
        here: String,
        everywhere: String,
        done_title: String,
        again: String,
    }
);

texts!(
    /// Changing and resetting a password.
    PasswordTexts {
        forgot_title: String,
        forgot_lead: String,
        no_mail: String,
        send: String,
        reset_title: String,
        reset_lead: String,
        first_title: String,
        first_lead: String,
        set: String,
        another_link: String,
        change_title: String,
        change_lead: String,
        change: String,
        current: String,
        new: String,
    }
);

texts!(
    /// Confirming an address.
    ConfirmTexts {
        title: String,
        lead: String,
        button: String,
        replace: String,
        resend: String,
        change_title: String,
        change_lead: String,
        change_button: String,
    }
);

texts!(
    /// The second factor.
    SecondFactorTexts {
        on_title: String,
        on_lead: String,
        next: String,
        scan: String,
        qr: String,
        type_in: String,
        app_hint: String,
        turn_on: String,
        start_again: String,
        codes_title: String,
        codes_lead: String,
        is_on: String,
        saved: String,
        off_title: String,
        off_lead: String,
        turn_off: String,
        renew_title: String,
        renew_lead: String,
        renew: String,
    }
);

texts!(
    /// The pages that change an account.
    ProfileTexts {
        name_title: String,
        name_hint: String,
        save: String,
        email_title: String,
        email_lead: String,
        delete_title: String,
        delete_lead: String,
        delete_code_hint: String,
        delete: String,
        back: String,
    }
);

texts!(
    /// The list of sessions.
    SessionsTexts {
        title: String,
        lead: String,
        lead_at_provider: String,
        this: String,
        when: String,
        by: String,
        log_out: String,
        end: String,
        end_what: String,
        one_more: String,
        more: String,
        everywhere: String,
        back: String,
        now: String,
        minute: String,
        minutes: String,
        hour: String,
        hours: String,
        day: String,
        days: String,
        device: String,
        program: String,
    }
);

texts!(
    /// The page for a form that was not sent.
    UnsentTexts {
        title: String,
        told: String,
        step_up: String,
        kept: String,
        log_in: String,
        come_back: String,
        send: String,
    }
);

texts!(
    /// What a page says is wrong.
    WrongTexts {
        title: String,
        open_again: String,
        login: String,
        login_code: String,
        password: String,
        password_or_code: String,
        confirm: String,
        app_code: String,
        no_app_code: String,
        taken: String,
        limited: String,
        link: String,
        link_unconfirmed: String,
        unconfirmed: String,
        registration_closed: String,
        provider_failed: String,
        provider_taken: String,
        provider_expired: String,
        provider_not_allowed: String,
        provider_overage: String,
        provider_away: String,
        no_password_login: String,
        step_up: String,
        foreign: String,
        busy: String,
        unavailable: String,
        too_long: String,
        not_found: String,
        session_over: String,
        other: String,
        second_factor_on: String,
        email: String,
        name: String,
        empty: String,
        no_mail: String,
        too_short: String,
        password_too_long: String,
        same: String,
        common: String,
        personal: String,
        guessable: String,
        keyboard: String,
        repetition: String,
        sequence: String,
        date: String,
        word: String,
        short: String,
    }
);

texts!(
    /// What was just done.
    DoneTexts {
        revoked: String,
        registered: String,
        verify: String,
        verified: String,
        confirmed: String,
        sent: String,
        password: String,
        everywhere: String,
        ended: String,
        totp_off: String,
        changed: String,
        email_asked: String,
        email: String,
        deleted: String,
    }
);

texts!(
    /// Mails.
    MailTexts {
        reset: Mail,
        verify: Mail,
        exists: Mail,
        invite: Mail,
        changed: Mail,
        new_email: Mail,
        email_taken: Mail,
        email_change_asked: Mail,
        email_changed: Mail,
        new_login: Mail,
        second_factor_on: Mail,
        second_factor_off: Mail,
    }
);

texts!(
    /// What happened.
    Outcome { title: String, text: String }
);

texts!(
    /// A message.
    Mail { subject: String, text: String }
);

texts!(
    /// Personal access tokens.
    TokensTexts {
        title: String,
        lead: String,
        expired: String,
        all_roles: String,
        no_roles: String,
        with_roles: String,
        created: String,
        used: String,
        unused: String,
        expires: String,
        expired_on: String,
        revoke: String,
        revoke_what: String,
        new_title: String,
        name: String,
        name_hint: String,
        roles: String,
        roles_hint: String,
        valid_for: String,
        days: String,
        make: String,
        copy_title: String,
        copy_lead: String,
        made: String,
        token: String,
        token_hint: String,
        copied: String,
        no_name: String,
        bad_name: String,
        taken: String,
        bad_role: String,
        bad_ttl: String,
        too_many: String,
    }
);
